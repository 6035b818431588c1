"""kill -9 of the archiver. The shim starts another and hands it the slots."""

from __future__ import annotations

from signal import SIGKILL

from holdfast.faults.base import Look, Target, Undo, Verdict, replaced

NAME = "kill_archiver"
SAYS = "kill -9 of the archiver; training must not notice"


def inject(target: Target) -> Undo:
    """Kill it."""
    target.signal("archiver", SIGKILL)
    return lambda: None


def bitten(before: Look, now: Look) -> bool:
    """Gone."""
    return now.processes.get("archiver") != before.processes.get("archiver")


def recovered(before: Look, now: Look) -> Verdict:
    """Another one answers, the trainer went on."""
    return replaced("archiver", "archiver.sock", before, now)
