"""What a timed training notes about the engine's calls, and what the tables make of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import save, timing
from bench.timing import Pace, TimedJob

COPY_S, WAITS = 0.05, threading.Event()


def trained(folder: Path, *, guarded: bool) -> dict[str, Any]:
    """Four saves that block for 50 ms, in the call or before the weights may change."""
    times = folder / "times"
    job = TimedJob(folder / "diary", size_bytes=10_000, last=5, pace=Pace(steps=3, rounds=20, times=times))

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
    for saved in trained(tmp_path, guarded=True)["saves"]:
        assert saved["blocked_s"] >= COPY_S
        assert saved["acknowledged_s"] < COPY_S


def test_more_computing_takes_more_rounds() -> None:
    assert timing.rounds_in(0.02) > timing.rounds_in(0.001)


def test_targets_say_met_or_not() -> None:
    ours = {"engine": save.OURS, "blocked_s": 1.4, "copy_s": 1.0, "added_s": 2.0}
    peer = {"engine": "torch_checkpointing", "added_s": 3.0}
    said = save.targets([ours, peer])

    assert [sentence.partition(":")[0] for sentence in said] == ["met", "NOT met", "met"]
