"""A training that is killed continues from memory: nothing but the step in progress is lost, and not a bit differs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.attempts import attempts, recoveries
from holdfast.runs import RunDir
from tests import jsonlines
from tests.e2e.box import Box
from tests.needs import need
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SCRIPTS = Path(__file__).parent / "scripts"


def begin(box: Box, name: str, checkpoint: str, script: str = "tiny.py", run: str = "python", **env: str) -> RunDir:
    shutil.copy(SCRIPTS / script, box.work / "train.py")
    box.write("holdfast.yaml", f"name: {name}\nrun: exec {run} train.py\ncheckpoint: {{{checkpoint}}}\n")
    return box.start(**{"WORKERS": "0", **env})


def records(run: RunDir, rank: int = 0) -> Iterator[dict[str, Any]]:
    return iter(jsonlines.read(run.records / f"rank-{rank:05d}.jsonl"))


def stepping(box: Box, run: RunDir, attempt: int) -> dict[str, Any]:
    """The status once that attempt has completed two steps of its own."""

    def reached() -> dict[str, Any] | None:
        found = box.status(run)
        restored = found["restored"] or {"attempt": 0, "step": 0}
        return found if restored["attempt"] == attempt and found["step"] >= restored["step"] + 2 else None

    return until(reached, 60, every_s=0.1, what=lambda: f"attempt {attempt}\n{box.tail(run)}")


def held(box: Box, run: RunDir, step: int) -> int:
    """The step of the newest copy in memory, at least `step`: a step is told of before its copy is made."""

    def reached() -> int | None:
        at = (box.status(run)["memory"] or {"step": 0})["step"]
        return at if at >= step else None

    return until(reached, 60, what=lambda: f"a copy of step {step}\n{box.tail(run)}")


def digest(run: RunDir) -> str:
    return (run.root / "final.txt").read_text()


def test_kills_of_everything_lose_no_more_than_the_step_in_progress(box: Box, expected: str) -> None:
    run = begin(box, "hit", "every: [1000 steps], memory: 1 step", STEP_S="0.2", SLOW_FROM="25", WORKERS="2")

    box.wait_step(run, 3)
    for attempt, also in enumerate(("archiver", "supervisor", "shim"), start=2):
        box.kill(run, also)
        box.kill(run, "trainer")
        told = stepping(box, run, attempt)
    (run.root / "enough").touch()

    found = box.wait_for(run, "succeeded", "failed")
    assert (found["state"], found["attempt"]) == ("succeeded", 4), box.tail(run)
    assert digest(run) == expected
    seen = list(recoveries(attempts(records(run))))
    assert len(seen) == 3
    assert max(recovery.lost_steps for recovery in seen) <= 1, seen
    assert told["restored"]["tier"] == "memory"
    assert told["memory"]["step"] > told["restored"]["step"]
    assert told["checkpoint"] is None
    assert "(memory)" in box.holdfast("explain", "hit").stdout


def test_two_ranks_continue_from_the_same_copy(box: Box, expected_of_two: str) -> None:
    ranks = {"script": "two_ranks.py", "run": "torchrun --standalone --nproc-per-node 2"}
    run = begin(box, "hit", "every: [1000 steps], memory: auto", **ranks, STEP_S="0.1", SLOW_FROM="20")
    at = held(box, run, 9)

    box.kill(run, "trainer")
    (run.root / "enough").touch()

    found = box.wait_for(run, "succeeded", "failed", within_s=120)
    assert found["state"] == "succeeded", box.tail(run)
    assert digest(run) == expected_of_two
    assert found["restored"]["tier"] == "memory"
    assert found["restored"]["step"] >= at > 0
    began = [line for rank in (0, 1) for line in records(run, rank) if line.get("event") == "restored"]
    assert len({line["step"] for line in began if line["attempt"] == 2}) == 1


def test_files_survive_the_death_of_every_process(box: Box) -> None:
    ram = box.root / "ram"
    run = begin(box, "pod", f"every: [1000 steps], memory: 1 step, memory_dir: {ram}", STEP_S="0.2", SLOW_FROM="15")
    at = held(box, run, 3)
    box.close()
    files = sorted(ram.iterdir())
    assert [(path.stat().st_mode & 0o777, path.stat().st_size > 4096) for path in files] == [(0o600, True)] * 3

    assert box.holdfast("resume", "pod", "-d").returncode == 0
    found = box.wait_for(run, "succeeded", "failed")

    assert found["restored"]["tier"] == "memory", box.tail(run)
    assert found["restored"]["step"] >= at
    until(lambda: not list(ram.iterdir()), 20, what="the files removed")


@pytest.mark.parametrize("kind", ["missing", "a file", "full"])
def test_a_memory_dir_that_cannot_be_used_is_told_and_done_without(box: Box, kind: str) -> None:
    ram = box.root / "ram"
    if kind == "missing":
        ram = ram / "not" / "there"
    elif kind == "a file":
        ram.touch()
    else:
        need(os.geteuid() == 0, "needs root to mount a small tmpfs")
        ram.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,mode=0700", "tmpfs", str(ram)], check=True)
    try:
        run = begin(
            box, "told", f"every: [1000 steps], memory: 1 step, memory_dir: {ram}", STEP_S="0.2", SLOW_FROM="15"
        )
        box.wait_step(run, 3)

        until(lambda: "memory-dir-unusable" in {one["id"] for one in box.status(run)["findings"]})
        assert box.status(run)["memory"]["step"] > 0
        if kind == "full":
            box.kill(run, "trainer")
            assert stepping(box, run, 2)["restored"]["tier"] == "memory"
    finally:
        box.close()
        if kind == "full":
            subprocess.run(["umount", "-l", str(ram)], check=True)
