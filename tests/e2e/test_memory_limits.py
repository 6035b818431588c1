"""In a container with little memory the tier is made smaller, and nobody is killed for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from holdfast.runs import RunDir
from tests.cgroups import Group, limited
from tests.e2e.box import TRAINS, Box
from tests.labs.mounts import apart
from tests.needs import need
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SCRIPTS = Path(__file__).parent / "scripts"
MIB = 1 << 20


def begin(box: Box, group: Group, **env: str) -> RunDir:
    """`holdfast run` of the big state, with everything it starts, inside the group."""
    shutil.copy(SCRIPTS / "big_state.py", box.work / "train.py")
    box.write("holdfast.yaml", "name: big\nrun: exec python train.py\ncheckpoint: {every: 4 steps, memory: 1 step}\n")
    done = subprocess.run(
        group.argv(box.argv("run", "-d", "--json")),
        cwd=box.work,
        env={**box.env, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return RunDir(Path(json.loads(done.stdout)["dir"]))


def told(box: Box, run: RunDir, name: str) -> str:
    """The finding of that id, once it is there."""

    def message() -> str | None:
        found: dict[str, Any] = {finding["id"]: finding["message"] for finding in box.status(run)["findings"]}
        return found.get(name)

    return str(until(message, 60, every_s=0.2, what=lambda: f"{name}\n{box.tail(run)}"))


def test_a_state_that_does_not_fit_three_times(box: Box) -> None:
    with limited(780 * MIB) as group:
        try:
            run = begin(box, group)

            message = told(box, run, "memory-tier-reduced")
            found = box.wait_for(run, "succeeded", "failed")

            assert "there is memory for 1 of 3 copies" in message or "there is memory for 2 of 3 copies" in message
            assert f"cgroup {group.folder}" in message
            assert (found["state"], found["attempt"], group.oom_kills()) == ("succeeded", 1, 0), box.tail(run)
            assert found["checkpoint"]["step"] == 30
        finally:
            box.close()


def test_no_room_for_a_single_copy_fails_saves_and_nothing_else(box: Box) -> None:
    with limited(560 * MIB) as group:
        try:
            run = begin(box, group, STEPS="1000")

            message = told(box, run, "save-failed")

            at = box.status(run)["step"]
            found = box.wait_step(run, at + 5)
            assert "a slot needs" in message
            assert found["state"] in TRAINS, box.tail(run)
            assert (found["attempt"], group.oom_kills()) == (1, 0), box.tail(run)
        finally:
            box.close()


def test_dev_shm_plays_no_part(box: Box) -> None:
    need(os.geteuid() == 0, "needs root to mount over /dev/shm")
    shutil.copy(SCRIPTS / "big_state.py", box.work / "train.py")
    tiny = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    command = f"exec {' '.join(apart())} sh -c '{tiny} && exec python train.py'"
    box.write("holdfast.yaml", f'name: shm\nrun: "{command}"\ncheckpoint: {{every: 4 steps, memory: 1 step}}\n')

    run = box.start(STEPS="8")

    assert box.wait_for(run, "succeeded", "failed")["checkpoint"]["step"] == 8, box.tail(run)
