"""This run in the queue of its machine: it asks for its devices, keeps them, and gives them back.

Never blocks the supervisor: nvidia-smi, which may hang, is asked on a thread, and the book is held for a moment only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from holdfast import events as ev
from holdfast.errors import HoldfastError
from holdfast.node import gpus, nvidia, sweep
from holdfast.plan import Plan
from holdfast.runs import RunDir
from holdfast.state import State
from holdfast.turn import Book, Device, Waiting, asked, kept, obstacles, turn
from holdfast.units import parse_accelerators

POLL_S = 0.25  # how often the one who is next looks into the book
IDLE_S = 1.0  # and the others
FRESH_S = 3.0  # devices are given by what was seen so long ago at most
LOOK_S = 10.0  # between two looks at devices on which others compute, or that could not be seen
KEEP_S = 5.0
TELL_S = 60.0  # processes of others come and go: that alone is told so often at most
_BOOK_S = 0.2
_LEAVE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look at the machine. at_s: monotonic; `problem` where it failed."""

    at_s: float
    devices: tuple[Device, ...] = ()
    computing: tuple[nvidia.Computing, ...] = ()
    problem: str = ""


class Lineup:
    """`waits`: it has asked and lacks devices."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self._run = str(run.root.resolve())  # whichever way it was reached: it must not wait for itself
        self._path = plan.env.get("PATH")
        self._wants = parse_accelerators(plan.accelerators) if plan.accelerators else None
        self._written = plan.accelerators
        self._seen: Seen | None = None
        self._looker: threading.Thread | None = None
        self._next_s = self._keep_s = self._told_s = 0.0
        self._is_next = False  # by the book, when last asked
        self.waits = False

    def ask(self, state: State) -> ev.DevicesTaken | ev.DevicesAwaited | None:
        """What the journal must be told before an attempt may begin, or while none may. None: nothing new."""
        if self._wants is None or time.monotonic() < self._next_s:
            return None
        pause_s = POLL_S if self._is_next or self._seen is None else IDLE_S
        self.waits, self._next_s = True, time.monotonic() + pause_s
        try:
            if state.devices and self._kept(state, self._used):
                self._have()
                return None
            return self._turn(Waiting(dir=self._run, wants=self._wants, since_s=state.since_s), state)
        except BlockingIOError:  # somebody writes: the next time
            return None
        except OSError as error:
            return self._news(state, 0, f"the book of devices cannot be changed: {error}")

    def keep(self, state: State) -> None:
        """Claim again now and then what the run has: somebody may have cleaned /tmp."""
        if not state.devices or time.monotonic() < self._keep_s:
            return
        self._keep_s = time.monotonic() + KEEP_S
        mine = dict.fromkeys(state.devices, self._run) if state.started else {}
        with suppress(OSError):  # the next time
            self._kept(state, lambda: mine)

    def leave(self) -> None:
        """The run is over: others may have its devices, and its place."""
        if self._wants is None:
            return
        self._have()
        with suppress(OSError):  # struck out once nothing of the run is left
            gpus.change(lambda book: book.without(self._run), within_s=_LEAVE_S)

    def _have(self) -> None:
        self.waits, self._is_next, self._next_s = False, False, 0.0

    def _kept(self, state: State, used: Callable[[], dict[str, str]]) -> bool:
        book = gpus.change(lambda book: kept(self._run, state.devices, book, used()), within_s=_BOOK_S)
        return set(book.of(self._run)) == set(state.devices)

    def _used(self) -> dict[str, str]:
        """Who trains on which device, by what processes were started with: others alone."""
        return {uuid: run for uuid, run in sweep.given().items() if run != self._run}

    def _turn(self, me: Waiting, state: State) -> ev.DevicesTaken | ev.DevicesAwaited | None:
        seen = self._seen
        if seen is None or seen.problem:
            if seen is not None:
                gpus.change(lambda book: book.without(me.dir), within_s=_BOOK_S)  # who is blind is in nobody's way
            self._look(every_s=LOOK_S)
            return self._news(state, 0, seen.problem) if seen is not None else None
        book = gpus.change(lambda book: self._edited(me, book, seen), within_s=_BOOK_S)
        uuids = book.of(me.dir)
        if uuids:
            self._have()
            names = [f"{device.index} {device.name}" for device in seen.devices if device.uuid in uuids]
            return ev.DevicesTaken(t=time.time(), devices=list(uuids), names=names)
        was_next, self._is_next = self._is_next, bool(turn(me, book, seen.devices, {}))
        if self._is_next:  # only what others compute there is in the way, perhaps no more
            self._look(every_s=LOOK_S if was_next else 0.0)
        strangers = nvidia.strangers(seen.computing, dict(book.claims))
        return self._news(state, len(book.ahead(me)), obstacles(me, book, seen.devices, strangers))

    def _edited(self, me: Waiting, book: Book, seen: Seen) -> Book:
        """The book with our devices, when it is our turn and what was seen is new; else with us in the line."""
        busy = nvidia.strangers(seen.computing, dict(book.claims))
        if time.monotonic() - seen.at_s > FRESH_S or not turn(me, book, seen.devices, busy):
            return book.queued(me)
        # The book may have been lost, and who trains has not claimed again yet: its processes say what they were given.
        return asked(me, book, seen.devices, {**busy, **self._used()})

    def _news(self, state: State, ahead: int, why: str) -> ev.DevicesAwaited | None:
        """An event where the journal says something else."""
        now_s, known = time.monotonic(), state.awaited
        told = ev.DevicesAwaited(t=time.time(), wants=self._written, ahead=ahead, why=why)
        if known is not None and replace(known, t=told.t) == told:
            return None
        if known is not None and known.ahead == ahead and now_s < self._told_s + TELL_S:
            return None
        self._told_s = now_s
        return told

    def _look(self, *, every_s: float) -> None:
        """Look at the machine, on a thread, unless one looks already or that was done less than `every_s` ago."""
        if self._looker is not None and self._looker.is_alive():
            return
        if self._seen is not None and time.monotonic() - self._seen.at_s < every_s:
            return
        self._looker = threading.Thread(target=self._looked, name="devices", daemon=True)
        self._looker.start()

    def _looked(self) -> None:
        try:
            found, computing = nvidia.devices(self._path), nvidia.computing(self._path)
        except (HoldfastError, OSError) as error:
            self._seen = Seen(at_s=time.monotonic(), problem=str(error))
        else:
            self._seen = Seen(at_s=time.monotonic(), devices=tuple(found), computing=tuple(computing))
