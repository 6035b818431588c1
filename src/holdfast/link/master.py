"""One OpenSSH master, our child in the foreground, and what its network does.

`states` decides, this carries out: it starts ssh, asks the other end for a sign of life, and ends a master that leads
nowhere. What ssh says lies in a file beside the socket, so that no pipe keeps anybody waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.link import asking, clock, mux, names, states, traffic
from holdfast.link.channels import Connection
from holdfast.link.diagnosis import Cause, Why, diagnose
from holdfast.link.hosts import Chosen
from holdfast.link.mux import MasterGone, Refused
from holdfast.link.states import Do, Link, State
from holdfast.link.target import Target, control_path, make_folder

TICK_S = 0.1
OPEN_POLL_S = 0.02
STILL_S = 1.0  # between two looks, beyond what lies between them anyway: the machine slept, or others had it
NUMBERS = 128  # channels at a time on one connection, before two of them could be taken for each other
END_S = 2.0  # for a master to end by itself before it is killed
MOVED_BYTES = 4096  # that show a way that works: more than a jump's own signs of life come to


def command(target: Target, path: Path, chosen: Chosen, *, asks: bool) -> list[str]:
    """How a master is started: nothing of the user's configuration but what concerns the way there.

    asks: a person is there who can be asked.
    """
    fixed = {
        "ControlMaster": "yes",
        "ControlPath": str(path),
        "ControlPersist": "no",
        **chosen.options,
        "BatchMode": "no" if asks else "yes",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
        "RequestTTY": "no",
    }
    options = [word for name, value in fixed.items() for word in ("-o", f"{name}={value}")]
    return ["ssh", *target.options, "-N", "-T", *options, "--", target.alias]


class Master:
    """The connection to one target, for as long as `serve` runs."""

    def __init__(
        self,
        target: Target,
        tell: Callable[[Link], object],
        chosen: Chosen | None = None,
        *,
        key: str = "",
        number: int = 0,
        can_ask: Callable[[], bool] = lambda: False,
    ) -> None:
        """key: of the place that questions of ssh belong to; can_ask: whether somebody is there now to be asked.

        number: sets its socket apart from those of others to the same target.
        """
        self.target, self.path = target, control_path(target, number)
        self.chosen = chosen or Chosen()  # for the next ssh that is started
        self._key = key or target.key
        self.link = Link(resumes=target.is_relayed)
        self.asks = False  # the last attempt could
        self._can_ask = can_ask
        self.is_single = False  # the server opens one session at a time
        self.connection: Connection | None = None  # for pings, and for who wants channels without one of their own
        self._tell = tell
        self._child: subprocess.Popen[bytes] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None  # of one of them
        self._slept_s, self._heard_s = clock.asleep_s(), 0.0
        self._looked_s = clock.now_s()
        self._carried: int | None = None  # bytes, when that last showed something about the ping that waits

    def want(self) -> None:
        """Somebody needs the connection now."""
        self._become(states.want(self.link, clock.now_s()))
        self._decided(states.sought(self.link, clock.now_s()))

    def drop(self) -> None:
        """Nobody needs it any more."""
        self._decided(states.drop(self.link, clock.now_s()))

    def hurry(self) -> None:
        """A program waits for the connection."""
        self._become(states.hurried(self.link, clock.now_s()))

    def asking(self, asking: bool) -> None:
        """A person is asked something, or has answered."""
        self._become(states.asked(self.link, clock.now_s(), asking=asking))

    def retire(self) -> None:
        """It stays for those who use it, and is not made anew when it goes."""
        self._become(replace(self.link, wanted=False))

    def busy(self, is_busy: bool) -> None:
        """Whether somebody uses it: silence is asked about sooner then."""
        self._become(replace(self.link, busy=is_busy))

    @property
    def age_s(self) -> float:
        """How long ago the connection was opened."""
        return clock.now_s() - self.link.opened_s

    @property
    def carries(self) -> bool:
        """Whether channels of the agent's own go through it: connections of forwards."""
        return self.connection is not None and self.connection.is_used

    def unix_s(self, link_s: float) -> float:
        """A time of the link on the unix clock."""
        return time.time() - (clock.now_s() - link_s)

    def uproot(self) -> None:
        """The network may be another one, or gone: ask now."""
        self._decided(states.uprooted(self.link, clock.now_s()))

    def fail(self, error: BaseException) -> None:
        """Nobody watches over it any more."""
        said = str(error) if isinstance(error, HoldfastError) else repr(error)
        why = Why(Cause.UNKNOWN, f"the connection to {self.target.alias} was given up: {said}", hint="see agent.log")
        self._become(states.gone(self.link, clock.now_s(), why, random.random()))  # noqa: S311

    async def serve(self) -> None:
        """Watch over the connection until cancelled; the master is ended then. Raises what nobody expected."""
        try:
            while self._failure is None:
                await self._turn()
                self._looked_s = clock.now_s()
                await asyncio.sleep(TICK_S)
            raise self._failure
        finally:
            for task in self._tasks:
                task.cancel()
            await self._hang_up()

    async def _turn(self) -> None:
        slept_s, now_s = clock.asleep_s(), clock.now_s()
        if now_s > self._looked_s + TICK_S + STILL_S:
            self._become(states.stood_still(self.link, now_s))
        if slept_s > self._slept_s + 1.0:
            self.uproot()
        self._slept_s = slept_s
        if self.connection is not None and self.connection.heard_s != self._heard_s:
            self._heard_s = self.connection.heard_s  # compared as it is: two readings of two clocks differ each time
            if self.link.state in (State.UP, State.SUSPECT):
                self._become(states.heard(self.link, self._heard_s + slept_s))
        if self._child is not None and self._child.poll() is not None:
            await self._ended(self._child)
        elif self._child is not None and self.link.asked_s is not None:
            self._look_at_traffic(self._child.pid)
        elif self._child is None and self.link.state is State.DEAD:  # dropped before ssh was started
            self._become(states.gone(self.link, now_s, Why(Cause.LOST, "it was given up before it began"), 0.0))
        self._decided(states.tick(self.link, now_s))
        if self.link.asked_s is None:
            self._carried = None

    def _look_at_traffic(self, pid: int) -> None:
        """Our ping lies behind what others send: it is late where the way is slow, and the way works."""
        carried = traffic.carried_bytes(pid)
        if carried is None or self._carried is None or carried < self._carried:
            self._carried = carried
        elif carried >= self._carried + MOVED_BYTES:
            self._carried = carried
            self._become(states.moved(self.link, clock.now_s()))

    def _decided(self, decision: tuple[Link, tuple[Do, ...]]) -> None:
        link, actions = decision
        self._become(link)
        work = {Do.CONNECT: self._connect, Do.PING: self._ping, Do.HANG_UP: self._hang_up}
        for action in actions:
            task = asyncio.get_running_loop().create_task(work[action]())
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._failure = self._failure or task.exception()

    def _become(self, link: Link) -> None:
        changed = (link.state, link.why, link.asking) != (self.link.state, self.link.why, self.link.asking)
        self.link = link
        if changed:
            self._tell(link)

    # -- what states asks for

    async def _connect(self) -> None:
        try:
            make_folder()
            await remove_stale(self.path)
            if self.link.state is not State.CONNECTING or self._child is not None:
                return  # dropped meanwhile, or begun anew
            child = self._child = self._started()
        except OSError as error:  # a full disk, no memory for a process
            self._become(states.gone(self.link, clock.now_s(), _not_started(self.target, error), random.random()))  # noqa: S311
            return
        while child.poll() is None and self.link.state is State.CONNECTING:
            with contextlib.suppress(MasterGone):
                await self._open()
                return
            await asyncio.sleep(OPEN_POLL_S)

    def _started(self) -> subprocess.Popen[bytes]:
        self.asks = self._can_ask()
        questions = asking.environment(self._key) if self.asks else {"SSH_ASKPASS_REQUIRE": "never"}
        with open(self._said, "wb", opener=_private) as said:
            return subprocess.Popen(
                command(self.target, self.path, self.chosen, asks=self.asks),
                env={**os.environ, **questions},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    async def _open(self) -> None:
        """Raises MasterGone while the master is not there yet, or does not answer."""
        connection = Connection(await mux.proxied(str(self.path), within_s=END_S))
        try:
            connection.take_numbers(NUMBERS)
            self.is_single = not await connection.opens_two(within_s=states.CONNECT_S)
        except BaseException:
            await connection.close()
            raise
        self.connection = connection
        if self.link.state is State.CONNECTING:  # nobody has dropped it meanwhile
            self._become(states.opened(self.link, clock.now_s()))
            self._decided(states.doubted(self.link, clock.now_s()))  # the first one waited for the login

    async def _ping(self) -> None:
        if self.connection is None:
            return
        try:
            await self.connection.ping(within_s=states.CONNECT_S)
        except MasterGone:  # silence is judged by the table
            self._become(states.missed(self.link))
        else:
            self._become(states.answered(self.link, clock.now_s()))

    async def _hang_up(self) -> None:
        child = self._child
        if child is None:
            return
        try:
            await mux.terminate(str(self.path), within_s=END_S)
        except (MasterGone, Refused):  # it does not answer, or was told to take nobody new
            child.terminate()
        if not await _has_ended(child):
            child.kill()
            await _has_ended(child)

    async def _ended(self, child: subprocess.Popen[bytes]) -> None:
        self._child = None
        if self.connection is not None:
            await self.connection.close()
            self.connection = None
        said = self._said.read_text(errors="replace") if self._said.exists() else ""  # a month later /tmp was tidied
        why = diagnose(said, self.target.alias)
        if why.cause is Cause.UNKNOWN and self.link.state in (State.UP, State.SUSPECT, State.DEAD):
            why = Why(Cause.LOST, f"the connection to {self.target.alias} ended", said=why.said)
        if why.cause is Cause.NAME and (meant := names.near(self.target.alias, self.target.config)):
            why = replace(why, hint=f"did you mean {meant}?")
        self._become(states.gone(self.link, clock.now_s(), why, random.random()))  # noqa: S311 (jitter)

    @property
    def _said(self) -> Path:
        return self.path.with_name(f"{self.path.name}.log")


async def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has, some time from now at the latest."""
    deadline_s = time.monotonic() + END_S
    while child.poll() is None and time.monotonic() < deadline_s:
        await asyncio.sleep(OPEN_POLL_S)
    return child.poll() is not None


async def remove_stale(path: Path) -> None:
    """A socket nobody listens on: ssh would print a word about it and go on without sharing."""
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    with contextlib.suppress(MasterGone):
        await mux.terminate(str(path), within_s=END_S)  # of an agent that was killed: ours now, and ended


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _not_started(target: Target, error: OSError) -> Why:
    return Why(Cause.UNKNOWN, f"ssh {target.alias} could not be started: {error.strerror or error}")
