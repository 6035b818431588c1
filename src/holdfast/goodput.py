"""How often a copy of the state should be made so that a run loses least: the interval formula, a tier at a time. Pure.

A *tier* is where a copy lies and what it therefore survives: `memory` (the death of the training processes), `disk`
(also a restart of the machine), `mirror` (also the loss of the machine). Each has its own cost and its own failures.

**Interval.** T_c, from the start of one save to the start of the next, that makes availability greatest:

    A(T_c) = (1 - T_s/T_c) · T_f / (T_f + T_r + T_c/2)
    T_c    = T_s + sqrt(2 (T_f + T_r) T_s + T_s²)

with T_s the time a save takes from training, T_f the mean time to failure, T_r that of a restart; on average half an
interval is trained again. Source: Saxena, Hukerikar, Blaz, Raj, "Optimal Checkpoint Interval with Availability as an
Objective Function", arXiv 2410.18124. For T_s, T_r « T_f it becomes sqrt(2 T_f T_s): Young, CACM 17(9), 1974; Daly,
FGCS 22(3), 2006.

**Failures** come with a constant rate, of which nothing is known at first: a gamma prior of shape 1, which weighs as
much as one failure seen in `PRIOR_S` seconds. After n failures in t seconds the mean time between them is taken as
(PRIOR_S + t) / (1 + n). A prior that is wrong by a factor k makes the interval wrong by sqrt(k), until evidence
outweighs it.

**Bounds.** Saving may not take more than `max_overhead_ratio` of the time; one save is finished before the next
begins; and there is a floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Tier = Literal["memory", "disk", "mirror"]
Kind = Literal["process", "machine", "lost"]

DAY_S = 86_400.0
FLOOR_S = 10.0  # for copies on disk and mirror: more often is no use to anybody

# Mean time between failures assumed before any was seen, in seconds.
PRIOR_S: dict[Kind, float] = {
    # No published figure: an assumption on the safe side. Most ends of jobs are not the hardware's (of 55 000 at
    # ByteDance, arXiv 2509.16293, faults of devices and network are the smaller part; memory, hangs, full disks
    # and the code itself the larger), so it must be far more often than the machine's.
    "process": DAY_S,
    # 8 GPUs: 47.7 days (Meta RSC, 4 million jobs, arXiv 2410.21680).
    "machine": 47.7 * DAY_S,
    "lost": 47.7 * DAY_S,  # whether its disk comes back cannot be known: as often as it fails at all
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """What was seen of a run so far."""

    process: int = 0  # attempts that ended unexpectedly and had trained
    machine: int = 0  # restarts of the machine under an attempt
    lost: int = 0  # returns from the mirror, since the machine had nothing
    trained_s: float = 0.0  # how long attempts ran in which these could happen

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Failures:
        """Of the object that `dataclasses.asdict` gives; what is not known is left out."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in raw.items() if name in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one save in one tier, and of coming back. Seconds."""

    blocked_s: float  # T_s: what training stood still
    write_s: float = 0.0  # from sealed to safe in the tier
    restart_s: float = 0.0  # T_r: from the start of the processes to the first step


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The choice, and every term of it, so that it can be shown."""

    tier: Tier
    seconds: float  # chosen
    best_s: float  # what the formula alone says
    bound: str  # what makes it longer than that: overhead | write | floor, or empty
    blocked_s: float  # T_s
    write_s: float
    failure_s: float  # T_f
    restart_s: float  # T_r
    failures: int  # seen, of the kinds that this tier is for
    trained_s: float
    max_overhead_ratio: float

    def to_json(self) -> dict[str, Any]:
        """As in the event `interval_chosen`."""
        return asdict(self)


def kinds(tier: Tier, *, memory: bool) -> tuple[Kind, ...]:
    """The failures after which a run comes back from `tier`; `memory`: that tier exists, and is asked first."""
    if tier == "memory":
        return ("process",)
    if tier == "mirror":
        return ("lost",)
    return ("machine",) if memory else ("process", "machine")


def mean_time_s(failing: Iterable[Kind], seen: Failures) -> float:
    """T_f: mean seconds between failures of these kinds together, whose rates add up."""
    counts: dict[Kind, int] = {"process": seen.process, "machine": seen.machine, "lost": seen.lost}
    return 1 / sum((1 + counts[kind]) / (PRIOR_S[kind] + seen.trained_s) for kind in failing)


def best_s(blocked_s: float, failure_s: float, restart_s: float) -> float:
    """The interval of the greatest availability, in seconds; 0 for a save that costs nothing."""
    return blocked_s + math.sqrt(2 * (failure_s + restart_s) * blocked_s + blocked_s**2)


def least_s(costs: Costs, max_overhead_ratio: float) -> float:
    """The shortest interval that keeps inside the overhead and has one save in flight at most, in seconds."""
    return max(costs.blocked_s / max_overhead_ratio, costs.write_s)


def interval(
    tier: Tier, costs: Costs, seen: Failures, *, memory: bool, max_overhead_ratio: float, floor_s: float = FLOOR_S
) -> Interval:
    """The interval of `tier`. `memory`: whether copies in memory are kept besides."""
    failing = kinds(tier, memory=memory)
    failure_s = mean_time_s(failing, seen)
    best = best_s(costs.blocked_s, failure_s, costs.restart_s)
    overhead_s = costs.blocked_s / max_overhead_ratio
    bounds = {"": best, "overhead": overhead_s, "write": costs.write_s, "floor": floor_s}
    bound = max(bounds, key=lambda name: bounds[name])  # the first of equals: no bound where the formula reaches it
    return Interval(
        tier=tier,
        seconds=bounds[bound],
        best_s=best,
        bound=bound,
        blocked_s=costs.blocked_s,
        write_s=costs.write_s,
        failure_s=failure_s,
        restart_s=costs.restart_s,
        failures=sum(getattr(seen, kind) for kind in failing),
        trained_s=seen.trained_s,
        max_overhead_ratio=max_overhead_ratio,
    )
