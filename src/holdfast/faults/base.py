"""What a fault is given and how recovery is judged. A fault is one file here; its name is the file's name.

A fault module has

    NAME, SAYS                     its name and one sentence on what it does
    inject(target) -> Undo         break it; the result takes the breakage back (twice is fine)
    bitten(before, now) -> bool    the breakage has shown its effect, `undo` may be called
    recovered(before, now) -> Verdict

`before` is a look taken just before `inject`. Processes are found by the shim's processes.json and by heartbeat
pages, as (pid, start time); nothing is ever found by name.
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from holdfast.errors import HoldfastError
from holdfast.events import AttemptEnded, AttemptStarted, Event
from holdfast.heartbeat import Beat, beat_at, page_path
from holdfast.journal import read
from holdfast.process import Identity, alive, send_signal
from holdfast.runs import RunDir

Undo = Callable[[], None]
ROLES = ("shim", "supervisor", "archiver", "trainer")


class CannotInject(HoldfastError):
    """The run is not in a state, or not on a machine, where this fault can be made."""


class Verdict(NamedTuple):
    """Whether the run has recovered, and what shows it (or what is still missing)."""

    ok: bool
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A run at one moment."""

    t: float  # unix seconds
    processes: dict[str, Identity] = field(default_factory=dict)  # those alive, by role
    answering: frozenset[str] = frozenset()  # sockets on which somebody listens
    beat: Beat | None = None  # rank 0; None without the library
    events: tuple[Event, ...] = ()  # the whole journal
    plan: dict[str, Any] = field(default_factory=dict)  # plan.json

    @property
    def step(self) -> int:
        """Completed steps of rank 0, 0 when unknown."""
        return self.beat.step if self.beat else 0

    def since(self, before: Look) -> tuple[Event, ...]:
        """What the journal has gained."""
        return self.events[len(before.events) :]


@dataclass(frozen=True, slots=True)
class Target:
    """The run to break. `save` asks for a checkpoint at the next step."""

    run: RunDir
    save: Callable[[], None]

    def look(self, now_s: float) -> Look:
        """See where the run is."""
        return Look(
            t=now_s,
            processes=processes(self.run),
            answering=frozenset(
                name for name in ("shim.sock", "control.sock", "archiver.sock") if listens(self.run.runtime / name)
            ),
            beat=beat_at(page_path(self.run.runtime, 0)),
            events=tuple(read(self.run.journal)[0]),
            plan=self.plan(),
        )

    def plan(self) -> dict[str, Any]:
        """plan.json."""
        plan = json.loads(self.run.plan.read_bytes())
        assert isinstance(plan, dict)
        return plan

    def signal(self, role: str, number: signal.Signals) -> Identity:
        """Send a signal to the process in that role. Raises CannotInject when there is none."""
        found = processes(self.run).get(role)
        if found is None or not send_signal(found, number):
            raise CannotInject(f"{self.run.id} has no live {role} to send {number.name}")
        return found

    def ranks(self) -> list[Identity]:
        """The living processes that have announced themselves in a heartbeat page."""
        pages = (self.run.runtime / "pages").glob("rank-*")
        beats = [beat for beat in map(beat_at, pages) if beat is not None]
        return [found for found in (Identity(beat.pid, beat.start_ticks) for beat in beats) if alive(found)]


class Fault(Protocol):
    """What mypy and the conformance test hold a fault module to."""

    NAME: str
    SAYS: str

    def inject(self, target: Target) -> Undo:
        """Break it. Raises CannotInject."""

    def bitten(self, before: Look, now: Look) -> bool:
        """Whether it has shown its effect."""

    def recovered(self, before: Look, now: Look) -> Verdict:
        """Whether all is well again."""


def processes(run: RunDir) -> dict[str, Identity]:
    """The living processes of a run by role, as the shim wrote them down."""
    try:
        written = json.loads((run.runtime / "processes.json").read_bytes())
    except (OSError, ValueError):
        return {}
    entries = {role: written.get(role) for role in ROLES}
    named = {role: Identity(entry["pid"], entry["start_ticks"]) for role, entry in entries.items() if entry}
    return {role: found for role, found in named.items() if alive(found)}


def listens(path: Path) -> bool:
    """Whether a process accepts connections on that socket."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as link:
            link.settimeout(1.0)
            try:
                link.connect(str(path))
            except OSError:
                continue
            return True
    return False


def lost_steps(before: Look, now: Look) -> int:
    """Steps that were completed and had to be done again, over all attempts that ended since `before`."""
    lost, last = 0, 0
    for event in now.since(before):
        if isinstance(event, AttemptEnded):
            last = event.step
        elif isinstance(event, AttemptStarted):
            lost, last = lost + max(0, last - event.resume_step), 0
    return lost


def trains(before: Look, now: Look) -> Verdict:
    """Whether the same trainer has gone on, by at least one step where steps are known."""
    if now.processes.get("trainer") != before.processes.get("trainer"):
        return Verdict(False, "the trainer was not left alone")
    if before.beat and now.step <= before.step:
        return Verdict(False, f"no step since {before.step}")
    return Verdict(True, f"training went on: step {before.step} to {now.step}" if before.beat else "same trainer")


def replaced(role: str, sock: str, before: Look, now: Look) -> Verdict:
    """Whether another process took over `role`, answers, and the trainer never noticed."""
    new = now.processes.get(role)
    if new is None or new == before.processes.get(role):
        return Verdict(False, f"no new {role}")
    if sock not in now.answering:
        return Verdict(False, f"{sock} does not answer")
    going_on = trains(before, now)
    old = before.processes.get(role)
    return Verdict(going_on.ok, f"{role} {old.pid if old else '-'} → {new.pid}; {going_on.evidence}")


def restarted(before: Look, now: Look) -> Verdict:
    """Whether a new attempt runs and has completed a step beyond where it began."""
    new = now.processes.get("trainer")
    if new is None or new == before.processes.get("trainer"):
        return Verdict(False, "no new trainer")
    if before.beat is None:
        return Verdict(True, f"new trainer {new.pid}")
    if now.beat is None or now.beat.attempt <= before.beat.attempt or now.step <= now.beat.first_step:
        return Verdict(False, "the new attempt has not completed a step")
    said = f"attempt {before.beat.attempt} → {now.beat.attempt}, continued from step {now.beat.first_step}"
    return Verdict(True, said)
