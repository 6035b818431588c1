"""kill -9 of the supervisor. The shim starts another, which folds the journal and re-adopts the trainer."""

from __future__ import annotations

from signal import SIGKILL

from holdfast.faults.base import Look, Target, Undo, Verdict, replaced

NAME = "kill_supervisor"
SAYS = "kill -9 of the supervisor; training must not notice"


def inject(target: Target) -> Undo:
    """Kill it."""
    target.signal("supervisor", SIGKILL)
    return lambda: None


def bitten(before: Look, now: Look) -> bool:
    """Gone."""
    return now.processes.get("supervisor") != before.processes.get("supervisor")


def recovered(before: Look, now: Look) -> Verdict:
    """Another one answers, the trainer went on."""
    return replaced("supervisor", "control.sock", before, now)
