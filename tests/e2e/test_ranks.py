"""More than one rank: all parts or none, and one dead rank restarts the attempt."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from holdfast.heartbeat import Page, page_path
from holdfast.runs import RunDir
from tests.e2e.box import Box

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


def _begin(box: Box, name: str, **env: str) -> RunDir:
    shutil.copy(Path(__file__).parent / "scripts" / "two_ranks.py", box.work / "train.py")
    command = "exec torchrun --standalone --nproc-per-node 2 train.py"
    box.write("holdfast.yaml", f"name: {name}\nrun: {command}\ncheckpoint: {{every: [5 steps]}}\n")
    return box.start(**env)


def test_a_killed_rank_restarts_both_and_the_weights_do_not_differ(box: Box, expected_of_two: str) -> None:
    hit = _begin(box, "hit", STEP_S="0.1", SLOW_FROM="20")
    box.wait_step(hit, 12)
    beat = Page(page_path(hit.runtime, 1)).read()
    assert beat is not None

    os.kill(beat.pid, signal.SIGKILL)
    (hit.root / "enough").touch()

    found = box.wait_for(hit, "succeeded", "failed", within_s=120)
    assert found["state"] == "succeeded", box.tail(hit)
    assert found["restarts"] >= 1
    assert expected_of_two == (hit.root / "final.txt").read_text()


def test_stop_is_agreed_by_both_ranks(box: Box) -> None:
    run = _begin(box, "agree", STEP_S="0.1", SLOW_FROM="20")
    box.wait_step(run, 3)

    box.holdfast("stop", "agree")

    found = box.wait_for(run, "stopped")
    assert (found["exit_code"], found["checkpoint"]["step"]) == (75, found["step"]), box.tail(run)


def test_ranks_that_save_at_every_step_never_save_at_different_ones(box: Box) -> None:
    run = _begin(box, "always", SAVE_ALWAYS="1", BALLAST_MB="32", STEP_S="0.03")

    found = box.wait_for(run, "succeeded", "failed", within_s=120)

    assert found["state"] == "succeeded", box.tail(run)
    archived = [json.loads(line) for line in run.archiver_log.read_text().splitlines()]
    assert [one for one in archived if one["event"] == "save_failed"] == []
    committed = [one["step"] for one in archived if one["event"] == "committed"]
    skipped = [line for line in (run.records / "rank-00001.jsonl").read_text().splitlines() if "save_skipped" in line]
    assert len(committed) >= 2, "the first and the last; how many between them is the machine's affair"
    assert skipped, "the saves were never in each other's way: nothing was tested"
