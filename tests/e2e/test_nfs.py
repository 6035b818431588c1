"""Checkpoints, and everything else of a run, on an NFS server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import kills
from holdfast.runs import RunDir
from tests.e2e.box import Box
from tests.jsonlines import events
from tests.labs.nfs import Mounted, nfs_mount
from tests.waiting import until

TINY = Path(__file__).parent / "scripts" / "tiny.py"
KILLS = 6


@pytest.fixture
def nfs(tmp_path: Path) -> Iterator[Mounted]:
    with nfs_mount(tmp_path / "nfs") as mounted:
        yield mounted


@pytest.mark.e2e
@pytest.mark.timeout(480)
def test_a_run_that_lies_on_nfs_survives_kills_with_the_same_bits(nfs: Mounted) -> None:
    done = kills.trainings(nfs.path / "home", seed=5, kills=KILLS, epochs=12, tell=lambda broken: None)

    assert [problem for broken in done for problem in (*broken.problems, *broken.story) if broken.problems] == []
    assert sum(sum(broken.kills.values()) for broken in done) >= KILLS


@pytest.mark.e2e
def test_a_server_that_falls_silent_costs_saves_and_no_step(nfs: Mounted, box: Box) -> None:
    shutil.copy(TINY, box.work / "train.py")
    spec = f"run: exec python train.py\ncheckpoint: {{dir: {nfs.path}/ckpt, every: [3 steps]}}\n"
    box.write("holdfast.yaml", f"name: silent\nenvs: {{STEP_S: 0.03, EPOCHS: 30}}\n{spec}")
    run = box.start()
    until(lambda: committed(run), what=lambda: box.tail(run))

    with nfs.silent():
        steps = box.status(run)["step"]
        box.wait_step(run, steps + 60)
        during = committed(run)
    until(lambda: committed(run) > during, what=lambda: box.tail(run))

    box.wait_for(run, "succeeded")
    verified = box.holdfast("ckpt", "verify", run.id)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def committed(run: RunDir) -> int:
    """How many saves became durable so far."""
    return len(events(run.archiver_log, "committed"))
