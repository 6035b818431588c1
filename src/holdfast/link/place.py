"""One place that the agent is connected to: the connection, who uses it, and the one that takes over from it.

A connection that grows too old, or has other options than a call insists on, is not ended: another one is brought up
beside it, whoever comes then gets that one, and the old one ends when its users have left. No stream breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from holdfast.deadline import within
from holdfast.errors import HostUnreachable
from holdfast.link import mux, standin
from holdfast.link.channels import Connection
from holdfast.link.hosts import Chosen, differs, says_something, show_keepalive
from holdfast.link.master import Master
from holdfast.link.mux import MasterGone, Refused
from holdfast.link.standin import Standin
from holdfast.link.states import PERSON_S, Link, State
from holdfast.link.target import Target, control_path

STRAGGLE_S = 5.0  # who was told a socket just before it was retired may still knock there
AGAIN_S = 60.0  # after a connection that could not take over, before the next one tries
MARGIN_S = 60.0  # before the age at which somebody would cut it; less where that is soon
_LIVE = (State.UP, State.SUSPECT)


class Held:
    """One connection and those who use it."""

    def __init__(self, master: Master, failed: Callable[[Held, BaseException], None]) -> None:
        self.master, self._failed = master, failed
        self.users: set[object] = set()
        self.retired_s = 0.0
        self.is_deaf = False  # takes nobody new
        self.standin: Standin | None = None  # where all else goes over one session
        self._sharing = asyncio.Lock()
        self._task = asyncio.get_running_loop().create_task(master.serve())
        self._task.add_done_callback(self._over)

    @property
    def is_used(self) -> bool:
        """Whether a client has it, or a connection of a forward goes through it."""
        return bool(self.users) or self.master.carries

    @property
    def is_over(self) -> bool:
        """Whether nobody watches over it any more."""
        return self._task.done()

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(self, error)

    @property
    def path(self) -> Path:
        """Of the socket that clients are to use."""
        return self.standin.path if self.standin is not None and self.standin.is_open else self.master.path

    async def share(self, command: str, path: Path) -> None:
        """Let what `command` starts there open channels, unless it does already. Raises HostUnreachable."""
        async with self._sharing:
            if self.standin is not None and self.standin.is_open:
                return
            if self.master.connection is None:
                raise HostUnreachable(f"{self.master.target} is {self.master.link.state.value}")
            self.standin = await standin.begin(self.master.connection, command, path)

    async def end(self) -> None:
        """Hang up, whoever uses it."""
        if self.standin is not None:
            await self.standin.close()
        self._task.cancel()
        await asyncio.wait([self._task])  # who is cancelled here is told, unlike by `await self._task`


class Place:
    """All that the agent holds for one key; `numbers` gives each connection a socket of its own."""

    def __init__(self, target: Target, key: str, chosen: Chosen, numbers: Iterator[int]) -> None:
        self.target, self.key, self._numbers = target, key, numbers
        self.people: dict[int, Any] = {}  # clients that can ask somebody at a terminal, while they wait for the link
        self._persist_s, self._max_age_s = _kept_s(chosen), chosen.max_age_s
        self._left_s = self._again_s = time.monotonic()
        self._staying: set[object] = set()  # whom any connection of ours serves: who waits for one, and forwards
        self._leaving: list[Held] = []
        self._heir: Held | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.moved = asyncio.Event()  # of the next change
        self.current = self._begun(chosen)

    @property
    def link(self) -> Link:
        """Of the connection that whoever comes now gets."""
        return self.current.master.link

    @property
    def users(self) -> set[object]:
        """Numbers of clients, and forwards."""
        return self._staying.union(*(held.users for held in self._every()))

    def want(self, client: int, chosen: Chosen) -> None:
        """`client` waits for a connection with these options."""
        self._persist_s, self._max_age_s = _kept_s(chosen), chosen.max_age_s
        self._staying.add(client)
        if self.link.state not in _LIVE:
            if says_something(chosen):
                self.current.master.chosen = chosen  # for the next one that is begun
        elif differs(chosen, self.current.master.chosen) and self._heir is None:
            self._follow(chosen)

    def is_ready(self, chosen: Chosen) -> bool:
        """Whether there is a connection, and none is on its way that `chosen` asks for."""
        on_its_way = self._heir is not None and differs(chosen, self.current.master.chosen)
        return self.link.state is State.UP and not on_its_way

    def take(self, client: int) -> None:
        """`client` is told of the connection that is there now."""
        self._staying.discard(client)
        self.current.users.add(client)

    def stay(self, user: object) -> None:
        """`user` uses whatever connection there is, one after the other."""
        self._staying.add(user)

    def leave(self, user: object) -> None:
        """`user` needs nothing of it any more."""
        if user in self.users:
            for users in (self._staying, *(held.users for held in self._every())):
                users.discard(user)
            self._left_s = time.monotonic()

    def is_spent(self, now_s: float) -> bool:
        """Whether nobody has used it for long enough, or it is of no use."""
        return self.current.is_over or (not self.users and now_s - self._left_s >= self._persist_s)

    def tick(self, now_s: float) -> None:
        """What is due."""
        self.current.master.busy(bool(self.users))
        for held in list(self._leaving):
            if not held.is_used or held.master.link.state not in _LIVE:
                self._leaving.remove(held)
                self._do(held.end())
            elif not held.is_deaf and now_s - held.retired_s > STRAGGLE_S:
                held.is_deaf = True
                self._do(_deafened(held))
        if self._is_old() and self._heir is None and now_s >= self._again_s:
            self._follow(self.current.master.chosen)

    def uproot(self) -> None:
        """The network may be another one."""
        for held in self._every():
            held.master.uproot()

    async def end(self) -> None:
        """Hang up everything, whoever uses it."""
        await asyncio.gather(*(held.end() for held in self._every()), *self._tasks)

    async def come_up(self, chosen: Chosen, within_s: float) -> None:
        """Until there is a connection for `chosen`, or it is known why there is none, or for so long."""
        master = self.current.master
        master.want()
        failures = self.link.failures

        def is_decided(link: Link) -> bool:
            ready = self.is_ready(chosen) or link.state is State.NEEDS_AUTHENTICATION
            return ready or (self.current.master is master and link.failures > failures)

        await self.until(is_decided, within_s)

    async def until(self, is_over: Callable[[Link], bool], within_s: float) -> None:
        """Until `is_over`, or for so long; the time in which a person is asked does not count."""
        left_s = within_s
        while not is_over(self.link) and left_s > 0:
            is_asking = any(held.master.link.asking for held in self._every())
            began_s = time.monotonic()
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self.moved.wait(), PERSON_S if is_asking else left_s)
            left_s -= 0 if is_asking else time.monotonic() - began_s

    async def connection(self, within_s: float) -> Connection:
        """The link as soon as it is up, for connections through it. Raises HostUnreachable."""
        self.current.master.hurry()
        await self.until(lambda link: link.state in (State.UP, State.NEEDS_AUTHENTICATION), within_s)
        connection, link = self.current.master.connection, self.link
        if link.state is not State.UP or connection is None:
            why = f": {link.why.sentence}" if link.why is not None else ""
            raise HostUnreachable(f"{self.target.alias} is {link.state.value}{why}")
        return connection

    async def share(self, command: str) -> None:
        """Let clients have one session of the connection together, in which `command` runs. Raises HostUnreachable."""
        await self.current.share(command, control_path(self.target, next(self._numbers)))

    def asking(self, is_asking: bool) -> None:
        """A person is asked something by ssh, or has answered."""
        for held in self._every():
            if held.master.link.state is State.CONNECTING:
                held.master.asking(is_asking)

    def told(self) -> dict[str, Any]:
        """For clients; times in seconds, `since_s` and `opened_s` of the unix clock."""
        link, chosen, why = self.link, self.current.master.chosen, self.link.why
        return {
            "ok": link.state is State.UP,
            "alias": self.target.alias,
            "key": self.key,
            "path": str(self.current.path),
            "by_one": self.current.path != self.current.master.path,
            "single": self.current.master.is_single,
            "state": link.state.value,
            "since_s": self.current.master.unix_s(link.since_s),
            "opened_s": self.current.master.unix_s(link.opened_s),
            "trip_s": link.trip_s,
            "loss_ratio": link.loss_ratio,
            "users": len(self.users),
            "older": len(self._leaving),
            "keepalive": show_keepalive(chosen.keepalive),
            "options": chosen.options,
            "why": why.sentence if why is not None else "",
            "hint": why.hint if why is not None else "",
        }

    def _begun(self, chosen: Chosen) -> Held:
        number, can_ask = next(self._numbers), lambda: bool(self.people)
        return Held(
            Master(self.target, lambda _: self._changed(), chosen, key=self.key, number=number, can_ask=can_ask),
            self._failed,
        )

    def _failed(self, held: Held, error: BaseException) -> None:
        """A mistake of ours, or a machine without descriptors: the log tells, and the connection is dropped."""
        traceback.print_exception(error)
        held.master.fail(error)

    def _follow(self, chosen: Chosen) -> None:
        """Bring up the one that takes over."""
        self._heir = self._begun(chosen)
        self._heir.master.want()

    def _changed(self) -> None:
        heir = self._heir
        if heir is not None and heir.master.link.state is State.UP:
            old, self.current, self._heir = self.current, heir, None
            old.master.retire()
            old.retired_s = time.monotonic()
            self._leaving.append(old)
        elif heir is not None and heir.master.link.why is not None:  # it will not come up, or not now
            self._heir, self._again_s = None, time.monotonic() + AGAIN_S
            self._do(heir.end())
        self.moved.set()
        self.moved = asyncio.Event()

    def _is_old(self) -> bool:
        margin_s = min(MARGIN_S, self._max_age_s / 5)
        live = self.link.state is State.UP
        return live and 0 < self._max_age_s < self.current.master.age_s + margin_s

    def _every(self) -> list[Held]:
        return [self.current, *([self._heir] if self._heir is not None else []), *self._leaving]

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _kept_s(chosen: Chosen) -> float:
    """How long without users; one that is not shared ends with its client."""
    return chosen.persist_s if chosen.multiplex else 0.0


async def _deafened(held: Held) -> None:
    with contextlib.suppress(MasterGone, Refused):  # one that is gone takes nobody either
        await mux.stop_listening(str(held.master.path))
