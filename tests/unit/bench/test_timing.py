"""What a timed training notes about the engine's calls, and what the tables make of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import save, timing
from bench.timing import Pace, TimedJob

COPY_S, WAITS = 0.05, threading.Event()


def pace(times: Path) -> Pace:
    return Pace(steps=3, rounds=20, threads=1, times=times)


def trained(folder: Path, *, guarded: bool) -> dict[str, Any]:
    """Four saves that block for 50 ms, in the call or before the weights may change."""
    times = folder / "times"
    job = TimedJob(folder / "diary", size_bytes=10_000, last=5, pace=pace(times))

    @contextmanager
    def guard() -> Iterator[None]:
        WAITS.wait(COPY_S)
        yield

    if guarded:
        job.guard = guard
    for step in job.steps():
        if not guarded:
            WAITS.wait(COPY_S)
        job.saved(step)
    job.done()
    return dict(json.loads(times.read_text()))


def test_the_engines_call_counts_as_blocked(tmp_path: Path) -> None:
    for saved in trained(tmp_path, guarded=False)["saves"]:
        assert saved["blocked_s"] >= COPY_S
        assert saved["worst_s"] >= COPY_S
        assert saved["acknowledged_s"] >= COPY_S


def test_waiting_before_the_weights_change_counts_as_blocked(tmp_path: Path) -> None:
    saves = trained(tmp_path, guarded=True)["saves"]

    assert all(saved["blocked_s"] >= COPY_S for saved in saves)
    assert min(saved["acknowledged_s"] for saved in saves) < COPY_S, "the machine may have stood still in one"


@pytest.mark.parametrize(("after", "counted"), [(1, 3), (7, 7), (99, 3 * timing.LONGEST)])
def test_an_interval_lasts_until_the_engine_has_saved(tmp_path: Path, after: int, counted: int) -> None:
    """And no longer than there is hope."""
    times, passed = tmp_path / "times", [0]
    job = TimedJob(tmp_path / "diary", size_bytes=10_000, last=4, pace=pace(times))

    def each() -> None:
        passed[0] += 1
        if passed[0] == after:
            job.saved(job.step)

    job.each = each
    for _ in job.steps():
        passed[0] = 0
    job.done()

    assert [saved["steps"] for saved in json.loads(times.read_text())["saves"]] == [counted] * 3


def test_more_computing_takes_more_rounds() -> None:
    assert timing.rounds_in(0.02, 1) > timing.rounds_in(0.001, 1)


def test_targets_say_met_or_not() -> None:
    ours = {"engine": save.OURS, "blocked_s": 1.4, "copy_s": 1.0, "added_s": 2.0}
    peer = {"engine": "torch_checkpointing", "added_s": 3.0}
    said = save.targets([ours, peer])

    assert [sentence.partition(":")[0] for sentence in said] == ["met", "NOT met", "met"]
