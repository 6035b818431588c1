"""kill -9 of the shim. Supervisor or archiver starts another, which re-adopts everything."""

from __future__ import annotations

from signal import SIGKILL

from holdfast.faults.base import Look, Target, Undo, Verdict, replaced

NAME = "kill_shim"
SAYS = "kill -9 of the shim; training must not notice"


def inject(target: Target) -> Undo:
    """Kill it."""
    target.signal("shim", SIGKILL)
    return lambda: None


def bitten(before: Look, now: Look) -> bool:
    """Gone."""
    return now.processes.get("shim") != before.processes.get("shim")


def recovered(before: Look, now: Look) -> Verdict:
    """Another one answers, the trainer went on."""
    return replaced("shim", "shim.sock", before, now)
