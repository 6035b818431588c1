"""Places that are hard to write to: told, and training goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.box import Box
from tests.labs.disks import loop_ext4, throttled
from tests.waiting import until

SCRIPTS = Path(__file__).parent / "scripts"
STATE_MB, SLOW = 16, 5_000_000


def lines(path: Path, event: str) -> list[dict[str, object]]:
    """The events of that name in a log of JSON lines."""
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [one for one in found if one.get("event") == event]


@pytest.mark.e2e
def test_a_disk_of_5_mb_a_second_costs_saves_and_no_step(box: Box, tmp_path: Path) -> None:
    shutil.copy(SCRIPTS / "heavy.py", box.work / "train.py")
    with loop_ext4(tmp_path, 256 << 20) as (disk, device), throttled(device, write_bytes_per_s=SLOW) as members:
        spec = f"run: exec python train.py\ncheckpoint: {{dir: {disk}/ckpt, every: [1 steps]}}\n"
        box.write("holdfast.yaml", f"name: slow\nenvs: {{STATE_MB: {STATE_MB}, STEPS: 160}}\n{spec}")
        run = box.start()
        archiver = until(lambda: box.process(run, "archiver"), what=lambda: box.tail(run))
        for task in Path(f"/proc/{archiver.pid}/task").iterdir():
            (members.parent / "tasks").write_text(task.name)

        box.wait_for(run, "succeeded", within_s=90)

        committed = lines(run.archiver_log, "committed")
        slowest = max(float(str(one["write_seconds"])) for one in committed)
        assert slowest > STATE_MB * (1 << 20) / SLOW / 2, "the disk was not slow"
        assert lines(run.records / "rank-00000.jsonl", "save_skipped")
        assert len(committed) < 160 / 4
        verified = box.holdfast("ckpt", "verify", run.id)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        box.close()
