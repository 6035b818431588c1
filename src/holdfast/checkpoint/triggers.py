"""When to save. Pure: counts and times in, a reason out.

Two kinds, since ranks must save at one step: what is *counted* (steps, epochs) every rank sees for itself; what is
*timed* (times, rules, auto, a metric that improved) one rank decides for all.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast import units
from holdfast.plan import Best, Every


@dataclass(frozen=True, slots=True)
class Point:
    """A moment of training: completed steps, epoch, monotonic seconds."""

    step: int
    epoch: int
    now_s: float


def counted(every: Every, *, last: Point, now: Point) -> str:
    """Why a save is due at `now` by steps or epochs when the one before was at `last`; empty when none is."""
    if every.steps is not None and now.step - last.step >= every.steps:
        return f"every {every.steps} steps"
    if every.epochs is not None and now.epoch - last.epoch >= every.epochs:
        return f"every {every.epochs} epochs"
    return ""


def timed(every: Every, *, last: Point, now: Point, auto_s: float) -> str:
    """Why a save is due by the clock; empty when none is, as long as nothing was trained since `last`.

    auto_s: the interval that `auto` chose, in seconds.
    """
    steps, passed_s = now.step - last.step, now.now_s - last.now_s
    if steps == 0 and now.epoch == last.epoch:
        return ""
    if every.seconds is not None and passed_s >= every.seconds:
        return f"every {every.seconds:g} s"
    for rule in every.rules:
        if passed_s >= rule.seconds and steps >= rule.steps:
            return units.write_trigger(units.Trigger(seconds=rule.seconds, if_steps=rule.steps))
    return "auto" if every.auto and passed_s >= auto_s else ""


def improves(best: Best, value: float, saved: float | None) -> bool:
    """Whether a value of the metric is better than the best with which a checkpoint was made (None: none was)."""
    if saved is None:
        return True
    return value > saved if best.mode == "max" else value < saved


def requested(*, number: int, handled: int, at_step: int, step: int) -> bool:
    """Whether the save request `number` of the heartbeat page is still open and its step has come."""
    return number > handled and step >= at_step
