"""What people ask of a supervisor through control.sock: to save, to stop, to go on. Each becomes an event.

Answered in the supervisor's loop, one at a time; what only reads is answered in `control`.
"""

from __future__ import annotations

import time
from typing import Any

from holdfast import events as ev
from holdfast.errors import HoldfastError, UsageError
from holdfast.lifecycle import YIELDS
from holdfast.node import launch
from holdfast.node.chronicle import Chronicle
from holdfast.node.control import Ask
from holdfast.plan import Plan
from holdfast.state import OVER


class Asks:
    """Answers them, or refuses."""

    def __init__(self, run: str, plan: Plan, chronicle: Chronicle) -> None:
        self._run, self._plan, self._chronicle = run, plan, chronicle

    def answer(self, ask: Ask) -> dict[str, Any]:
        """What has become of it. Raises HoldfastError."""
        state = self._chronicle.state
        if ask.path == "/resume":
            return self._resume(ask.body)
        if state.phase in OVER:
            raise HoldfastError(f"run {self._run!r} is over: {state.phase.value}", hint="holdfast resume")
        if ask.path == "/save":
            return self._save(str(ask.body.get("reason", ""))[:200])
        return self._stop("kill" if ask.path == "/kill" else "stop", ask.body.get("grace_s", self._plan.stop_grace_s))

    def _stop(self, how: str, grace_s: object) -> dict[str, Any]:
        if not isinstance(grace_s, (int, float)) or not 0 <= grace_s < 1e9:
            raise UsageError(f"grace_s {grace_s!r} is not a number of seconds")
        self._chronicle.apply(ev.StopRequested(t=time.time(), how=how, grace_s=float(grace_s)))
        return {"state": self._chronicle.state.phase.value}

    def _save(self, reason: str) -> dict[str, Any]:
        state = self._chronicle.state
        if any(finding.id == "no-library" for finding in state.findings):
            hint = "add holdfast.Run to the script, or save there by other means"
            raise HoldfastError(f"the program of run {self._run!r} does not use the library: nothing saves", hint=hint)
        if state.started is None:
            raise HoldfastError(f"run {self._run!r} is {state.phase.value}: there is nothing to save")
        number = state.save_number + 1
        self._chronicle.apply(ev.SaveRequested(t=time.time(), number=number, reason=reason))
        return {"number": number}

    def _resume(self, body: dict[str, Any]) -> dict[str, Any]:
        state = self._chronicle.state
        if state.phase not in OVER:
            raise HoldfastError(f"run {self._run!r} is {state.phase.value} already", hint="holdfast attach")
        try:
            want = launch.resolve(self._plan, body.get("at"))
        except ValueError as error:
            raise UsageError(str(error)) from None
        self._chronicle.clear("restart-budget")
        for said in YIELDS:  # the mirror is asked anew
            self._chronicle.clear(said)
        self._chronicle.apply(ev.ResumeRequested(t=time.time(), want=want))
        return {"attempt": self._chronicle.state.next_attempt, "want": want}
