"""When to save. Pure: counts and times in, a reason out."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.plan import Every

AUTO_LEAST_S = 10.0


@dataclass(frozen=True, slots=True)
class Point:
    """A moment of training: completed steps, epoch, monotonic seconds."""

    step: int
    epoch: int
    now_s: float


def due(every: Every, *, last: Point, now: Point, blocked_s: float, max_overhead_ratio: float, timed: bool) -> str:
    """Why a save is due at `now` when the one before was at `last`; empty when none is.

    blocked_s: what the last save cost the training loop, in seconds.
    timed: False where several ranks must agree, so that clocks decide nothing here.
    """
    if now.step == last.step and now.epoch == last.epoch:
        return ""
    if every.steps is not None and now.step - last.step >= every.steps:
        return f"every {every.steps} steps"
    if every.epochs is not None and now.epoch - last.epoch >= every.epochs:
        return f"every {every.epochs} epochs"
    passed_s = now.now_s - last.now_s
    if timed and every.seconds is not None and passed_s >= every.seconds:
        return f"every {every.seconds:g} s"
    if timed and every.auto and passed_s >= auto_interval_s(blocked_s, max_overhead_ratio):
        return "auto"
    return ""


def auto_interval_s(blocked_s: float, max_overhead_ratio: float) -> float:
    """Seconds between saves so that they cost at most `max_overhead_ratio` of the time."""
    return max(AUTO_LEAST_S, blocked_s / max_overhead_ratio)


def requested(*, number: int, handled: int, at_step: int, step: int) -> bool:
    """Whether the save request `number` of the heartbeat page is still open and its step has come."""
    return number > handled and step >= at_step
