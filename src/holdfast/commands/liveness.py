"""Whether a run is live, where it stands, and when it is over: what every verb that looks or waits asks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from holdfast.errors import HoldfastError, UsageError
from holdfast.faults.base import listens
from holdfast.runs import RunDir, plan_of

ENDED = frozenset({"succeeded", "failed", "stopped"})
POLL_S = 0.25
LOST_S = 15.0  # a run that nothing has carried for this long will not come back by itself


def live(run: RunDir) -> bool:
    """Whether any process of ours carries the run now: its shim, or the supervisor that is bringing it back."""
    return listens(run.runtime / "shim.sock") or listens(run.runtime / "control.sock")


def status_of(run: RunDir) -> dict[str, Any]:
    """The `status --json` object, from the supervisor or else from the files. Raises HoldfastError."""
    from holdfast.node import client

    try:
        return client.status(run)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HoldfastError(f"{run.root} cannot be read: {error}", hint=f"holdfast events --json {run.id}") from error


def polls(run: RunDir, *, every_s: float = POLL_S) -> Iterator[dict[str, Any]]:
    """The status again and again; the last one is that of a run that is over.

    That is one that has ended and no longer sends to its mirror, or that was lost for `LOST_S`.
    """
    carried = time.monotonic()
    while True:
        status = status_of(run)
        now = time.monotonic()
        if status["state"] != "lost":
            carried = now
        yield status
        if (status["state"] in ENDED and not sending(run, status)) or now - carried > LOST_S:
            return
        time.sleep(every_s)


def sending(run: RunDir, status: dict[str, Any]) -> bool:
    """Whether a run that has ended may still be sending to its mirror; its shim stays for as long."""
    return bool(status.get("mirror")) and listens(run.runtime / "shim.sock")


def when_over(run: RunDir, *, every_s: float = POLL_S) -> dict[str, Any]:
    """Wait; the last status."""
    return deque(polls(run, every_s=every_s), maxlen=1)[0]


def exit_code_of(status: dict[str, Any]) -> int:
    """What `wait` and an attached `run` return: the run's own exit code, 1 where it left none."""
    code = status.get("exit_code")
    return code if isinstance(code, int) else 1


def must_be_live(run: RunDir, verb: str) -> None:
    """Raise UsageError, with the state, when nothing carries the run, or its own script does; HoldfastError for one
    that a newer version has made, before anything is asked of it.
    """
    from holdfast.plan import refuse_newer

    plan = plan_of(run)
    refuse_newer(plan)
    if plan.get("alone"):
        pid = status_of(run).get("pid")
        hint = f"kill {pid} (SIGTERM) lets it save and leave" if pid else "start that script again: it continues"
        raise UsageError(f"cannot {verb} {run.id}: it was started by its own script, without a supervisor", hint=hint)
    if not live(run):
        state = status_of(run)["state"]
        raise UsageError(f"cannot {verb} {run.id}: it is {state}", hint=f"holdfast resume {run.id} continues it")
