"""Segments of real trainings: saved, left, continued, and never a bit of difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from holdfast.events import SegmentOver
from holdfast.runs import RunDir
from tests import noderuns
from tests.e2e.box import Box
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SCRIPTS = Path(__file__).parent / "scripts"
# A machine may be so slow that a segment is over before the ranks can be asked: they are asked as soon as they can be,
# and the signal for who is no rank yet ends nobody.
PATIENT = "stop_signal: SIGUSR2\nrun: trap '' USR2; exec"
THREE_STEPS = {"EPOCHS": "1", "BATCH": "107", "WORKERS": "0"}


def _begin(box: Box, name: str, command: str, more: str = "", **env: str) -> RunDir:
    text = f"name: {name}\n{PATIENT} {command}\ncheckpoint: {{every: [1000 steps]}}\n{more}"
    box.write("holdfast.yaml", text)
    return box.start(**env)


def _ended_as(run: RunDir) -> list[str]:
    events = [json.loads(line) for line in run.journal.read_text().splitlines()]
    return [event["exit_class"] for event in events if event["event"] == "attempt_ended"]


def test_a_training_in_segments_ends_with_the_same_bits_also_when_a_supervisor_dies(box: Box) -> None:
    shutil.copy(SCRIPTS / "tiny.py", box.work / "train.py")
    calm = _begin(box, "calm", "python train.py", **THREE_STEPS, STEP_S="0")
    assert box.wait_for(calm, "succeeded", "failed")["state"] == "succeeded", box.tail(calm)
    cut = _begin(box, "cut", "python train.py", "segment: 1s\nrestart: {policy: no}\n", **THREE_STEPS, STEP_S="1")
    until(lambda: noderuns.of(cut, SegmentOver), 60, what=lambda: box.tail(cut))

    box.kill(cut, "supervisor")

    found = box.wait_for(cut, "succeeded", "failed", within_s=150)
    *ends, last = _ended_as(cut)
    assert (found["state"], last) == ("succeeded", "succeeded"), box.tail(cut)
    assert set(ends) == {"segment_end"}
    assert len(ends) == found["segments"] >= 3
    assert found["restarts"] == 0
    assert "segment-unsaved" not in {finding["id"] for finding in found["findings"]}
    assert (calm.root / "final.txt").read_text() == (cut.root / "final.txt").read_text()
    lines = (cut.records / "rank-00000.jsonl").read_text().splitlines()
    assert [line["step"] for line in map(json.loads, lines) if "loss" in line] == [1, 2, 3]
    said = box.holdfast("explain", "cut").stdout
    assert "its segment was over: it saved and left, and goes on" in said
    assert "then: attempt 2 at once (segment_end; free)" in said


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_two_ranks_leave_together_at_the_end_of_a_segment(box: Box) -> None:
    shutil.copy(SCRIPTS / "two_ranks.py", box.work / "train.py")
    command = "torchrun --standalone --nproc-per-node 2 train.py"
    calm = _begin(box, "calm", command, EPOCHS="1")
    box.wait_for(calm, "succeeded", "failed")
    cut = _begin(box, "cut", command, "segment: 1s\n", EPOCHS="1", STEP_S="0.5")

    found = box.wait_for(cut, "succeeded", "failed", within_s=300)

    assert found["state"] == "succeeded", box.tail(cut)
    *ends, last = _ended_as(cut)
    assert (set(ends), last) == ({"segment_end"}, "succeeded")
    assert len(ends) == found["segments"] >= 2
    assert (calm.root / "final.txt").read_text() == (cut.root / "final.txt").read_text()
