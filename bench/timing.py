"""A training whose steps take time, with a save every so many of them: what the saves add to it.

An interval is `steps` steps of plain computing, the change of the weights, and the engine's call. `interval_s` is
measured in the same process before the engine begins, without any save.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.job import Job

SIDE = 256  # of the matrices of one round of computing
PEACEFUL = 2  # intervals without saves, after one that nobody counts


@dataclass(frozen=True, slots=True)
class Pace:
    """Steps between two saves, rounds of computing in a step, and the file that receives the times."""

    steps: int
    rounds: int
    times: Path


def rounds_in(step_s: float) -> int:
    """Rounds of computing that take about so long here, on one thread."""
    torch.set_num_threads(1)
    compute(50)
    began_s = time.perf_counter()
    compute(200)
    return max(1, int(step_s * 200 / (time.perf_counter() - began_s)))


def compute(rounds: int) -> None:
    """The same work each time; stays in the cache, so that it competes for cores more than for memory."""
    matrix = torch.full((SIDE, SIDE), 1.0 / SIDE)
    for _ in range(rounds):
        matrix = matrix @ matrix


class TimedJob(Job):
    """Notes every moment; `done` writes them down."""

    def __init__(self, diary: Path, *, size_bytes: int, last: int, pace: Pace) -> None:
        super().__init__(diary, size_bytes=size_bytes, last=last)
        self._pace = pace
        self._handed_s: dict[int, float] = {}  # when the engine got the step
        self._saved_s: dict[int, float] = {}
        self._blocked_s: dict[int, float] = {}  # in the engine's call, and waiting for its guard
        self._worst_s: dict[int, float] = {}  # longest step of the interval that ends with this save
        self._interval_s: dict[int, float] = {}
        self.copy_s = self._copy()
        self._peace = self._in_peace()

    def begin(self, step: int) -> None:
        back_s = time.perf_counter()
        before = step - 1
        if before in self._handed_s:
            self._blocked_s[before] = back_s - self._handed_s[before]
        self._worst_s[before] = self._blocked_s.get(before, 0.0)
        for number in range(self._pace.steps):
            began_s = time.perf_counter()
            compute(self._pace.rounds)
            self.each()
            took_s = time.perf_counter() - began_s
            self._worst_s[before] = max(
                self._worst_s[before], took_s + (self._blocked_s.get(before, 0.0) if number == 0 else 0.0)
            )
        waited_s = time.perf_counter()
        with self._guarded(before):
            super().begin(step)
        self._handed_s[step] = time.perf_counter()
        if before in self._handed_s:
            self._interval_s[before] = self._handed_s[step] - self._handed_s[before]
        self._worst_s[before] = max(self._worst_s[before], self._handed_s[step] - waited_s)

    @contextmanager
    def _guarded(self, before: int) -> Iterator[None]:
        """The time until the engine lets the weights be changed counts as blocked."""
        guard = self.guard
        began_s = time.perf_counter()
        with guard():
            self._blocked_s[before] = self._blocked_s.get(before, 0.0) + time.perf_counter() - began_s
            self.guard = nullcontext  # held already
            try:
                yield
            finally:
                self.guard = guard

    def saved(self, step: int) -> None:
        self._saved_s[step] = time.perf_counter()
        super().saved(step)

    def done(self) -> None:
        made: dict[str, Any] = {"copy_s": self.copy_s, "peace_s": self._peace[0], "peace_step_s": self._peace[1]}
        made["saves"] = [
            {
                "step": step,
                "blocked_s": self._blocked_s[step],
                "added_s": self._interval_s[step] - self._peace[0],
                "worst_s": self._worst_s[step],
                "acknowledged_s": self._saved_s[step] - self._handed_s[step] if step in self._saved_s else None,
            }
            for step in sorted(self._interval_s)
        ]
        self._pace.times.write_text(json.dumps(made))
        super().done()

    def _copy(self) -> float:
        """Seconds of one copy of the state into memory that is there already, on one thread."""
        self.weights.fill(0)
        copies = [each.data.clone() for each in self.weights.parameters()]
        times = []
        for _ in range(3):
            began_s = time.perf_counter()
            for copy, each in zip(copies, self.weights.parameters(), strict=True):
                copy.copy_(each.data)
            times.append(time.perf_counter() - began_s)
        return min(times)

    def _in_peace(self) -> tuple[float, float]:
        """Seconds of an interval without a save, and of a step in it."""
        intervals, steps = [], []
        for _ in range(1 + PEACEFUL):
            began_s = time.perf_counter()
            for _ in range(self._pace.steps):
                step_s = time.perf_counter()
                compute(self._pace.rounds)
                steps.append(time.perf_counter() - step_s)
            self.weights.fill(0)
            intervals.append(time.perf_counter() - began_s)
        return min(intervals[1:]), min(steps)
