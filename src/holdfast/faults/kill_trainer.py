"""kill -9 of the trainer. The supervisor starts another attempt, which continues from the newest checkpoint."""

from __future__ import annotations

from signal import SIGKILL

from holdfast.faults.base import Look, Target, Undo, Verdict, restarted

NAME = "kill_trainer"
SAYS = "kill -9 of the trainer; another attempt must continue"


def inject(target: Target) -> Undo:
    """Kill it."""
    target.signal("trainer", SIGKILL)
    return lambda: None


def bitten(before: Look, now: Look) -> bool:
    """Gone."""
    return now.processes.get("trainer") != before.processes.get("trainer")


def recovered(before: Look, now: Look) -> Verdict:
    """A new attempt has completed a step."""
    return restarted(before, now)
