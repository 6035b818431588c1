"""After a reboot, shown for real: cron runs @reboot jobs once more when its marker file is gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.box import Box
from tests.needs import need, need_program
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

MARKER = Path("/var/run/crond.reboot")


def test_at_reboot_everything_that_ran_continues(box: Box) -> None:
    need(os.geteuid() == 0, "needs root to start a cron daemon")
    cron, crontab = need_program("cron"), need_program("crontab")
    shutil.copy(Path(__file__).parent / "scripts" / "tiny.py", box.work / "train.py")
    box.write("holdfast.yaml", "name: boot\nrun: exec python train.py\ncheckpoint: {every: [3 steps]}\n")
    run = box.start(STEP_S="0.2", SLOW_FROM="15")
    box.wait_step(run, 5)
    before = subprocess.run([crontab, "-l"], capture_output=True, text=True, check=False).stdout
    box.close()  # everything dies at once, as in a power cut

    assert box.holdfast("host", "setup", "--yes").returncode == 0
    try:
        MARKER.unlink(missing_ok=True)
        daemon = subprocess.Popen([cron, "-f"], env=box.env, start_new_session=True)
        try:
            until(lambda: box.status(run)["attempt"] >= 2, 60, what=lambda: box.tail(run))  # until then it is as it was
            box.wait_for(run, "succeeded", within_s=90)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(10)
        assert box.holdfast("host", "setup", "--remove").returncode == 0
        until(lambda: before == subprocess.run([crontab, "-l"], capture_output=True, text=True, check=False).stdout)
    finally:
        subprocess.run([crontab, "-"], input=before, text=True, check=True)
