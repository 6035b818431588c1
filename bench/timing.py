"""A training whose steps take time, with a save every so many of them: what the saves add to it.

A counted interval begins with the engine's call and lasts for `steps` steps of plain computing, or until the engine has
said "saved" if that is later, and one change of the weights. Before and after it comes one in peace: the same without a
save. What a save adds is the difference to these two, so that a machine which is slower for a while slows both.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.job import Job

SIDE = 256  # of the matrices of one round of computing
LONGEST = 5  # counted intervals of so many times `steps` end although the save has not


@dataclass(frozen=True, slots=True)
class Pace:
    """Steps between two saves, rounds of computing in a step, threads that compute, where the times are written."""

    steps: int
    rounds: int
    threads: int
    times: Path


def rounds_in(step_s: float, threads: int) -> int:
    """Rounds of computing that take about so long here, on so many threads."""
    torch.set_num_threads(threads)
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
        self._worst_s: dict[int, float] = {}  # longest step of the interval that begins with this save
        self._counted: dict[int, tuple[float, int]] = {}  # seconds and steps of that interval
        self._peace_s: dict[int, float] = {}  # seconds of the interval in peace before this save
        self._peaceful: list[float] = []  # seconds of each step in peace
        self.copy_s = self._copy()
        torch.set_num_threads(pace.threads)
        compute(pace.rounds)

    def begin(self, step: int) -> None:
        self._count(step)
        self._rest(step)
        self._handed_s[step] = time.perf_counter()

    def _count(self, step: int) -> None:
        """The rest of the interval that began with the save of the step before, up to the new weights."""
        back_s, before, done = time.perf_counter(), step - 1, 0
        if before not in self._handed_s:
            super().begin(step)
            return
        self._blocked_s[before] = longest_s = back_s - self._handed_s[before]
        while done < self._pace.steps or (before not in self._saved_s and done < LONGEST * self._pace.steps):
            began_s = time.perf_counter()
            compute(self._pace.rounds)
            self.each()
            took_s = time.perf_counter() - began_s
            longest_s = max(longest_s, took_s + (self._blocked_s[before] if not done else 0.0))
            done += 1
        waited_s = time.perf_counter()
        with self._guarded(before):
            super().begin(step)
        over_s = time.perf_counter()
        self._worst_s[before] = max(longest_s, over_s - waited_s)
        self._counted[before] = over_s - self._handed_s[before], done

    def _rest(self, step: int) -> None:
        began_s = time.perf_counter()
        for _ in range(self._pace.steps):
            step_s = time.perf_counter()
            compute(self._pace.rounds)
            self._peaceful.append(time.perf_counter() - step_s)
        with self.guard():
            self.weights.fill(step)
        self._peace_s[step] = time.perf_counter() - began_s

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
        saves = []
        for step, (seconds, steps) in sorted(self._counted.items()):
            peace_s = (self._peace_s[step] + self._peace_s[step + 1]) / 2
            saved_s = self._saved_s.get(step)
            saves.append({
                "step": step,
                "steps": steps,
                "blocked_s": self._blocked_s[step],
                "added_s": seconds - peace_s * steps / self._pace.steps,
                "worst_s": self._worst_s[step],
                "peace_s": peace_s,
                "acknowledged_s": None if saved_s is None else saved_s - self._handed_s[step],
            })  # fmt: skip
        made = {"copy_s": self.copy_s, "peace_step_s": statistics.median(self._peaceful), "saves": saves}
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
