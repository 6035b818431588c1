"""How often a state is copied into memory. Pure: counts and times in, a decision out.

Several ranks must copy at the same steps, and no clock is the same for all of them. So what depends on time is turned
into a number of steps that is a power of two: the sets of any two ranks nest, and all soon take the largest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from holdfast.plan import Memory

MOST_STEPS = 1 << 20
_KEPT = 0.5  # of an average with each new measurement


@dataclass(frozen=True, slots=True)
class Pace:
    """What copies and steps cost of late, in seconds; 0 while unknown. `steps`: between two copies, where we choose."""

    copy_s: float = 0.0
    step_s: float = 0.0
    steps: int = 1

    def after_step(self, step_s: float) -> Pace:
        """With one more step measured, saving not included."""
        return replace(self, step_s=_blend(self.step_s, step_s))

    def after_copy(self, copy_s: float, memory: Memory, max_overhead_ratio: float) -> Pace:
        """With one more copy measured, and `steps` chosen anew."""
        known = replace(self, copy_s=_blend(self.copy_s, copy_s))
        if known.step_s <= 0:
            return known
        least_s = memory.seconds if memory.seconds is not None else known.copy_s / max_overhead_ratio
        return replace(known, steps=power_of_two(least_s / known.step_s))


def power_of_two(at_least: float) -> int:
    """The smallest power of two that is not less, up to MOST_STEPS."""
    return min(MOST_STEPS, 1 << max(0, math.ceil(math.log2(at_least)))) if at_least > 1 else 1


def due(memory: Memory, *, step: int, agreed_steps: int, passed_s: float, alone: bool) -> bool:
    """Whether a copy is due after `step` steps.

    agreed_steps: the largest `Pace.steps` of all ranks. passed_s: since the last copy. alone: the only rank, so that
    its own clock may decide.
    """
    if memory.steps is not None:
        return step % memory.steps == 0
    if memory.seconds is not None and alone:
        return passed_s >= memory.seconds
    return memory.on and step % agreed_steps == 0


def _blend(known: float, new: float) -> float:
    return new if known <= 0 else _KEPT * known + (1 - _KEPT) * new
