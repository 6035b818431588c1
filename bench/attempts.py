"""What the records of a run say about its attempts: how far each came, where the next went on, how soon.

Pure: takes the lines of `records/rank-00000.jsonl`, as `LiveRun.records` gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(slots=True)
class Attempt:
    """One start of the training process."""

    number: int
    from_step: int = 0  # completed steps in the checkpoint it went on from
    steps: list[int] = field(default_factory=list)  # completed by it, in order
    times_s: list[float] = field(default_factory=list)  # unix seconds of each
    losses: list[float] = field(default_factory=list)
    tier: str = ""  # memory or disk; empty for a start from nothing
    fell_back: bool = False  # something newer was there and was not trusted

    @property
    def last_step(self) -> int:
        """How far it came."""
        return self.steps[-1] if self.steps else self.from_step


def attempts(records: Iterable[dict[str, Any]]) -> list[Attempt]:
    """The attempts in order."""
    found: dict[int, Attempt] = {}
    for record in records:
        attempt = found.setdefault(record.get("attempt", 0), Attempt(record.get("attempt", 0)))
        if record.get("event") == "restored":
            attempt.from_step, attempt.tier = record["step"], record.get("tier", "")
            attempt.fell_back = bool(record.get("fell_back"))
        elif "loss" in record:
            attempt.steps.append(record["step"])
            attempt.times_s.append(record["t"])
            attempt.losses.append(record["loss"])
    return sorted(found.values(), key=lambda attempt: attempt.number)


@dataclass(frozen=True, slots=True)
class Recovery:
    """From the end of one attempt to the first step of the next that did one."""

    reached_step: int
    from_step: int
    next_step_s: float  # unix seconds at which the next step was complete
    fell_back: bool = False  # told at the restore

    @property
    def lost_steps(self) -> int:
        """Steps that were done twice."""
        return max(0, self.reached_step - self.from_step)


def recoveries(found: list[Attempt]) -> Iterator[Recovery]:
    """One for each attempt after the first that completed a step."""
    stepped = [attempt for attempt in found if attempt.steps]
    for before, after in pairwise(stepped):
        yield Recovery(before.last_step, after.from_step, after.times_s[0], after.fell_back)


def contradictions(records: Iterable[dict[str, Any]], *, steps_total: int) -> list[str]:
    """Steps without a record, and steps whose repetition logged another loss; empty when all is well."""
    losses: dict[int, set[float]] = {}
    for record in records:
        if "loss" in record and "event" not in record:
            losses.setdefault(record["step"], set()).add(record["loss"])
    missing = [step for step in range(1, steps_total + 1) if step not in losses]
    differing = [step for step, seen in sorted(losses.items()) if len(seen) > 1]
    said = [f"no record of {len(missing)} steps, the first {missing[:5]}"] if missing else []
    return said + [f"step {step} logged {sorted(losses[step])}" for step in differing]
