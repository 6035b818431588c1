"""How a connection to a machine's node service is had, again and again over one call, and what is known of the link."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from holdfast import fsio
from holdfast.commands.arguments import say
from holdfast.commands.progress import bar_once_moving
from holdfast.errors import HoldfastError, HostUnreachable, UsageError

if TYPE_CHECKING:
    from holdfast.bundle import Node
    from holdfast.bundle.push import Progress
    from holdfast.link.channels import Connection
    from holdfast.link.client import Links, Up
    from holdfast.link.hosts import Settings
    from holdfast.service.streams import Stream

_ANSWER_S = 30.0  # for the shell there
_AGAIN_S = 10.0  # for one attempt to have the link back


class Reach(Protocol):
    """A machine with a node service."""

    @property
    def host(self) -> str:
        """What people call it."""

    async def connect(self) -> Stream:
        """To the service. Raises OSError while the link is away, HoldfastError where a person has to mend it."""

    async def hang_up(self) -> None:
        """The call is over: nothing of its event loop is left. Another one may `connect` anew."""

    def standing(self) -> str:
        """The state of the link: `up`, `suspect`, `down` …"""


@contextlib.contextmanager
def linked(host: str, within_s: float, run_file: Settings | None = None) -> Iterator[Linked]:
    """`host` over SSH, our own code in place there. Raises HostUnreachable, with the state of the link.

    run_file: what the run file of the run in question says of the connection.
    """
    from holdfast.link.client import Links, telling
    from holdfast.link.target import users_config

    with Links() as links:
        up = links.up(host, config=users_config(), within_s=within_s, run_file=run_file)
        with telling(up):
            with _sending(up.alias) as progress:
                there = reached(links, up, within_s=within_s, progress=progress, run_file=run_file)
            try:
                yield there
            finally:
                there.close()


@contextlib.contextmanager
def _sending(host: str) -> Iterator[Progress]:
    """Show what is sent to `host`, unless several are asked at once, in threads: a terminal has one bar."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda _done, _all: None
        return
    with bar_once_moving(f"holdfast → {host}") as progress:
        yield progress


def reached(
    links: Links,
    up: Up,
    *,
    again: bool = False,
    within_s: float = _ANSWER_S,
    progress: Progress = lambda _done, _all: None,
    run_file: Settings | None = None,
) -> Linked:
    """The machine behind `up`, our own code in place there, and one session for everything where it allows no more.

    again: what is remembered of it is wrong. within_s: for each answer of its shell. Raises HostUnreachable.
    """
    from holdfast import bundle
    from holdfast.bundle import places
    from holdfast.link.target import users_config

    with contextlib.ExitStack() as held:
        if up.single and not up.by_one:  # one at a time: who has the session for everybody has it for good
            held.enter_context(fsio.lock_file(places.make_folder("hosts") / f"{up.key}.lock", wait_s=math.inf))
            up = links.up(up.alias, config=users_config(), run_file=run_file)
        node = bundle.ensure(up, again=again, within_s=within_s, tell=say, progress=progress)
        there = Linked(links, up, node, run_file, within_s)
        there.share()
        return there


def shared(links: Links, up: Up) -> Up:
    """`up` over the session that a machine allows, where our code is known to be there; else as it is."""
    from holdfast.bundle import places

    node = places.remembered(up.key) if up.single else None
    if node is None:
        return up
    with contextlib.suppress(HostUnreachable):  # what is remembered may be wrong
        return links.share(up, Linked(links, up, node).channels)
    return up


class Linked:
    """Over the link that the agent holds. Use from one thread."""

    def __init__(
        self, links: Links, up: Up, node: Node, run_file: Settings | None = None, within_s: float = _ANSWER_S
    ) -> None:
        self._links, self.up, self.node = links, up, node
        self._run_file, self._within_s = run_file, within_s
        self._ports: list[int] = []  # of ours that lead there
        self._is_new_agent = False  # which knows nothing of them
        self._connection: Connection | None = None
        self._has_tried = self._has_answered = False

    @property
    def host(self) -> str:
        return self.up.alias

    def close(self) -> None:
        """The link may go."""
        self._links.close()

    def lead(self, ports: Sequence[int]) -> None:
        """Let ports of this machine lead to the same ones there until `close`; one that is taken here is told."""
        self._ports = [port for port in ports if self._leads(port)]
        if self._ports:
            said = " and ".join(f"127.0.0.1:{port}" for port in self._ports)
            say(f"{said} of this machine {'leads' if len(self._ports) == 1 else 'lead'} to the same of {self.host}")

    def _leads(self, port: int) -> bool:
        """Whether it does from now on."""
        from holdfast.link.mux import End

        try:
            self._links.forward(self.up.key, port, End("localhost", port))
        except UsageError as error:
            say(str(error), hint=f"holdfast forward {self.host} 0:{port}")
            return False
        return True

    def starting(self, *words: str) -> list[str]:
        """What starts a program of ours there, as words for a shell."""
        return ["env", f"HOLDFAST_HOME={self.node.home}", *self.node.command(*words)]

    @property
    def channels(self) -> str:
        """What starts the other end of one session for everything, as a command for a shell.

        Commands that are started there find the environment that they would find under sshd.
        """
        return f"exec {shlex.join(self.node.command('node', 'channels'))}"

    def share(self) -> None:
        """From now on everything over one session, if that is all there is. Raises HostUnreachable."""
        if self.up.by_one or not (self.up.single or self.node.refuses(time.time())):
            return
        try:
            self.up = self._links.share(self.up, self.channels)
        except HostUnreachable:
            self.ask_again()  # our code may have been removed there
            self.up = self._links.share(self.up, self.channels)

    def ask_again(self) -> None:
        """What was remembered of the machine is wrong: ask it, and bring what it lacks. Raises HostUnreachable."""
        from holdfast import bundle

        self.node = bundle.ensure(self.up, again=True, within_s=self._within_s, tell=say)

    async def connect(self) -> Stream:
        from holdfast.service.streams import through

        try:
            stream = await through(self._fresh, self.node.socket)()
        except ConnectionRefusedError:
            if self._has_answered:  # the service of this call is gone, and what became of the verb nobody knows
                raise
            await asyncio.to_thread(self._start)
            try:
                stream = await through(self._fresh, self.node.socket)()
            except ConnectionRefusedError:
                if self.up.by_one:
                    raise
                await asyncio.to_thread(self._note_refusal)
                stream = await through(self._fresh, self.node.socket)()
        self._has_answered = True
        return stream

    async def hang_up(self) -> None:
        connection, self._connection = self._connection, None
        self._has_answered = False
        if connection is not None:
            await connection.close()

    def standing(self) -> str:
        from holdfast.link.client import Links
        from holdfast.link.states import State

        with contextlib.suppress(HoldfastError), Links() as links:  # `connect` may be using the other one
            for link in links.every():
                if link["key"] == self.up.key:
                    return str(link["state"])
        return State.DOWN.value  # the agent has none, or is just being replaced

    async def _fresh(self) -> Connection:
        """A connection of our own to the master there is now."""
        from holdfast.link import mux
        from holdfast.link.channels import Connection

        if self._connection is not None:
            await self._connection.close()
            self._connection = None
        if self._has_tried:
            try:
                await asyncio.to_thread(self._up_again)
            except asyncio.CancelledError:
                self._links.interrupt()  # else the thread, and with it the program, would wait on
                raise
        self._has_tried = True
        self._connection = Connection(await mux.proxied(self.up.path))
        return self._connection

    def _up_again(self) -> None:
        """Raises OSError while there is no link, NeedsAuthentication when a person is needed."""
        from holdfast.link.client import AgentGone, Links, NeedsAuthentication
        from holdfast.link.target import users_config

        try:
            alias, config = self.up.alias, users_config()
            self.up = self._links.up(alias, config=config, within_s=_AGAIN_S, run_file=self._run_file)
            self.share()
            if self._is_new_agent:
                self._ports = [port for port in self._ports if self._leads(port)]
                self._is_new_agent = False
        except NeedsAuthentication:
            raise
        except AgentGone as error:
            self._links.close()
            self._links, self._is_new_agent = Links(), True
            raise ConnectionResetError(str(error)) from error
        except HostUnreachable as error:
            raise ConnectionResetError(str(error)) from error

    def _note_refusal(self) -> None:
        """The service listens there, and sshd opens no channel to it: AllowStreamLocalForwarding, DisableForwarding."""
        from holdfast.bundle import places

        self.node = replace(self.node, refused_s=time.time())
        places.remember(self.node)

    def _start(self) -> None:
        """A service there: by what is remembered of the machine, and where that is wrong by asking it.

        Raises OSError when the link goes meanwhile, Unfit.
        """
        from holdfast import bundle
        from holdfast.bundle.probing import Unfit

        try:
            try:
                bundle.start(self.up, self.node, within_s=self._within_s)
            except Unfit:
                self.ask_again()
                bundle.start(self.up, self.node, within_s=self._within_s)
        except Unfit:
            raise
        except HostUnreachable as error:
            raise ConnectionResetError(str(error)) from error
