"""A training that is killed continues from memory: nothing but the step in progress is lost, and not a bit differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.attempts import attempts, recoveries
from holdfast.runs import RunDir
from tests.e2e.box import Box
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SCRIPTS = Path(__file__).parent / "scripts"


def begin(box: Box, name: str, checkpoint: str, script: str = "tiny.py", run: str = "python", **env: str) -> RunDir:
    shutil.copy(SCRIPTS / script, box.work / "train.py")
    box.write("holdfast.yaml", f"name: {name}\nrun: exec {run} train.py\ncheckpoint: {{{checkpoint}}}\n")
    return box.start(**{"WORKERS": "0", **env})


def records(run: RunDir, rank: int = 0) -> Iterator[dict[str, Any]]:
    for line in (run.records / f"rank-{rank:05d}.jsonl").read_text().splitlines():
        yield json.loads(line)


def stepping(box: Box, run: RunDir, attempt: int) -> dict[str, Any]:
    """The status once that attempt has completed two steps of its own."""

    def reached() -> dict[str, Any] | None:
        found = box.status(run)
        restored = found["restored"] or {"attempt": 0, "step": 0}
        return found if restored["attempt"] == attempt and found["step"] >= restored["step"] + 2 else None

    return until(reached, 60, every_s=0.1, what=lambda: f"attempt {attempt}\n{box.tail(run)}")


def digest(run: RunDir) -> str:
    return (run.root / "final.txt").read_text()


def test_kills_of_everything_lose_no_more_than_the_step_in_progress(box: Box) -> None:
    calm = begin(box, "calm", "every: [1000 steps], memory: off", STEP_S="0")
    box.wait_for(calm, "succeeded")
    run = begin(box, "hit", "every: [1000 steps], memory: 1 step", STEP_S="0.2")

    box.wait_step(run, 3)
    for attempt, also in enumerate(("archiver", "supervisor", "shim"), start=2):
        box.kill(run, also)
        box.kill(run, "trainer")
        told = stepping(box, run, attempt)

    found = box.wait_for(run, "succeeded", "failed")
    assert (found["state"], found["attempt"]) == ("succeeded", 4), box.tail(run)
    assert digest(run) == digest(calm)
    seen = list(recoveries(attempts(records(run))))
    assert len(seen) == 3
    assert max(recovery.lost_steps for recovery in seen) <= 1, seen
    assert told["restored"]["tier"] == "memory"
    assert told["memory"]["step"] > told["restored"]["step"]
    assert told["checkpoint"] is None
    assert "(memory)" in box.holdfast("explain", "hit").stdout


def test_two_ranks_continue_from_the_same_copy(box: Box) -> None:
    ranks = {"script": "two_ranks.py", "run": "torchrun --standalone --nproc-per-node 2"}
    calm = begin(box, "calm", "every: [1000 steps], memory: off", **ranks)
    box.wait_for(calm, "succeeded", "failed", within_s=120)
    run = begin(box, "hit", "every: [1000 steps], memory: auto", **ranks, STEP_S="0.1")
    at = box.wait_step(run, 9)["memory"]["step"]

    box.kill(run, "trainer")

    found = box.wait_for(run, "succeeded", "failed", within_s=120)
    assert found["state"] == "succeeded", box.tail(run)
    assert digest(run) == digest(calm)
    assert found["restored"]["tier"] == "memory"
    assert found["restored"]["step"] >= at > 0
    began = [line for rank in (0, 1) for line in records(run, rank) if line.get("event") == "restored"]
    assert len({line["step"] for line in began if line["attempt"] == 2}) == 1
