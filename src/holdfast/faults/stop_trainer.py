"""SIGSTOP of the trainer: it hangs without dying.

A watchdog that is to restart within a minute must do so. Any other is not waited for: after five seconds SIGCONT
follows, and training must go on as if nothing had been. The trainer is stopped in a step: one that saves may be silent
for `checkpoint.timeout`.
"""

from __future__ import annotations

from signal import SIGCONT, SIGSTOP
from time import monotonic, sleep

from holdfast.events import HangDetected
from holdfast.faults.base import Look, Target, Undo, Verdict, restarted, trains
from holdfast.heartbeat import Phase
from holdfast.process import Identity, send_signal

NAME = "stop_trainer"
SAYS = "SIGSTOP of the trainer; the watchdog restarts it, or it goes on after SIGCONT"

_HOLD_S = 5.0
_AGAIN_S = 0.05
_SHORT_S = 60.0


def inject(target: Target) -> Undo:
    """Stop the trainer and every rank below it; undo lets those continue that still live."""
    stopped, until_s = _stop(target), monotonic() + _HOLD_S
    while not _steps(target) and monotonic() < until_s:
        _go_on(stopped)
        sleep(_AGAIN_S)
        stopped = _stop(target)
    return lambda: _go_on(stopped)


def _stop(target: Target) -> set[Identity]:
    stopped = {target.signal("trainer", SIGSTOP), *target.ranks()}
    for process in stopped:
        send_signal(process, SIGSTOP)
    return stopped


def _go_on(stopped: set[Identity]) -> None:
    for process in stopped:
        send_signal(process, SIGCONT)


def _steps(target: Target) -> bool:
    """Whether rank 0 is in a step; true of what has no pages."""
    beat = target.look(0.0).beat
    return beat is None or beat.phase == Phase.RUNNING


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
