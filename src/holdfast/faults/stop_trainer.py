"""SIGSTOP of the trainer: it hangs without dying.

A watchdog that is to restart within a minute must do so. Any other is not waited for: after five seconds SIGCONT
follows, and training must go on as if nothing had been.
"""

from __future__ import annotations

from signal import SIGCONT, SIGSTOP

from holdfast.events import HangDetected
from holdfast.faults.base import Look, Target, Undo, Verdict, restarted, trains
from holdfast.process import send_signal

NAME = "stop_trainer"
SAYS = "SIGSTOP of the trainer; the watchdog restarts it, or it goes on after SIGCONT"

_HOLD_S = 5.0
_SHORT_S = 60.0


def inject(target: Target) -> Undo:
    """Stop the trainer and every rank below it; undo lets those continue that still live."""
    stopped = {target.signal("trainer", SIGSTOP), *target.ranks()}
    for process in stopped:
        send_signal(process, SIGSTOP)

    def undo() -> None:
        for process in stopped:
            send_signal(process, SIGCONT)

    return undo


def bitten(before: Look, now: Look) -> bool:
    """The watchdog has ended it; where that would take long, five seconds have passed."""
    if _restarts_soon(before):
        return now.processes.get("trainer") != before.processes.get("trainer")
    return now.t - before.t >= _HOLD_S


def recovered(before: Look, now: Look) -> Verdict:
    """A hang was found and a new attempt trains, or the same trainer went on."""
    if any(isinstance(event, HangDetected) for event in now.since(before)):
        return restarted(before, now)
    return trains(before, now)


def _restarts_soon(look: Look) -> bool:
    watchdog = look.plan["watchdog"]
    allowed_s = watchdog["progress_s"]
    return watchdog["action"] == "restart" and allowed_s is not None and allowed_s <= _SHORT_S
