"""The connection protocol of SSH (RFC 4254) through a master: many channels on one socket, with signals.

The master rewrites channel numbers, so each `Connection` has its own; sessions here count against the server's
MaxSessions, channels to unix sockets do not. The reader never waits for a channel: what one does not read stays within
its window. A message leaves whole or not at all, whoever is cancelled while it waits to be sent.

The protocol is the same from both ends: with `accept` a `Connection` is the one that serves (node/channels.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from holdfast.link import wire
from holdfast.link.mux import HOST_ANSWER_S, MasterGone, Refused
from holdfast.link.wire import FALSE, TRUE, Malformed, Reader, string, u32

WINDOW_BYTES = 2 << 20  # what the other side may send ahead
PACKET_BYTES = 32 << 10
READ_BYTES = 64 << 10  # taken from the master at a time
UNSENT_BYTES = 256 << 10  # with more to be sent, those who write wait
LAST_WORDS_S = 2.0  # for the server to close the channels of a connection that is closed here
GREETING = b"\0holdfast channels 1\n"  # before the messages of `holdfast node channels`
STREAMLOCAL = "direct-streamlocal@openssh.com"  # a channel to a unix socket

GLOBAL_REQUEST, REQUEST_FAILURE = 80, 82
OPEN, OPEN_CONFIRMATION, OPEN_FAILURE = 90, 91, 92
WINDOW_ADJUST, DATA, EXTENDED_DATA, EOF, CLOSE, REQUEST, SUCCESS, FAILURE = 93, 94, 95, 96, 97, 98, 99, 100
_STDERR = 1
_FORBIDS = "AllowStreamLocalForwarding and DisableForwarding in its sshd_config, restrict before your key"
_PROHIBITED, _CONNECT_FAILED = 1, 2  # why a channel was not opened: RFC 4254, section 5.1
_AGAIN_S, _LATEST_S = 0.02, 1.0  # between two attempts to open a session


@dataclass(frozen=True, slots=True)
class Exit:
    """How a remote command ended: its status, or the name of the signal (without SIG). Neither: the channel was cut."""

    status: int | None = None
    signal: str = ""


Accept: TypeAlias = Callable[["Channel", str, Reader], None]  # of that kind, with what was said about it besides


class Connection:
    """All channels of one client of a master. Use on one event loop."""

    def __init__(self, connected: socket.socket, accept: Accept | None = None) -> None:
        """accept: gets each channel that the other end asks for, and confirms or refuses it, now or later."""
        self._socket, self._accept = connected, accept
        self.steady: Channel | None = None  # a session that stays: pings go through it, and need none of their own
        self._channels: dict[int, Channel] = {}
        self._numbers = itertools.count()
        self._have, self._unsent = bytearray(), bytearray()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._was_refused = False
        self._why: Exception | None = None
        self.heard_s = time.monotonic()  # when the last byte came
        self._task = asyncio.get_running_loop().create_task(self._receive())
        self._task.add_done_callback(lambda _: connected.close())

    @property
    def is_used(self) -> bool:
        """Whether any channel is open, or about to be, besides the one that stays."""
        return any(channel is not self.steady for channel in self._channels.values())

    async def ping(self, *, within_s: float = HOST_ANSWER_S) -> float:
        """Seconds to the server and back: a question to a session that stays, or else one in which nothing is started,
        closed at once. Raises MasterGone.
        """
        began_s = time.monotonic()
        with contextlib.suppress(Refused):  # no is an answer too
            if self.steady is not None:
                await self.steady.ask("keepalive@openssh.com", b"", within_s)
            else:
                (await self._open("session", b"", within_s)).give_up()
        return time.monotonic() - began_s

    async def opens_two(self, *, within_s: float = HOST_ANSWER_S) -> bool:
        """Whether the server opens more than one session at a time; nothing is started in them. Raises MasterGone."""
        both = [self._open("session", b"", within_s) for _ in range(2)]
        opened = await asyncio.gather(*both, return_exceptions=True)
        for one in opened:
            if isinstance(one, Channel):
                one.give_up()
            elif not isinstance(one, Refused):
                raise one
        return all(isinstance(one, Channel) for one in opened)

    def take_numbers(self, count: int) -> None:
        """Let the master's own numbers of channels begin at `count`: a channel that is refused keeps its number.

        A master (OpenSSH 7.4 to 9.2 and newer sources) looks a channel that a client closes up by the number that the
        server gave it, and may find the control channel of a passenger, which keeps there the number that the master
        gave. Then it closes the channel a second time when the client hangs up, and the server ends the connection, or
        another channel (channel_by_remote_id in channels.c, mux_master_process_new_session in mux.c). The server counts
        from 0 too: with its numbers below ours no two are the same.
        """
        for _ in range(count):
            self.post(OPEN, string("none@holdfast") + u32(next(self._numbers), WINDOW_BYTES, PACKET_BYTES))

    async def session(self, *, within_s: float = HOST_ANSWER_S) -> Channel:
        """A channel for one command. Raises Refused where the server has too many, MasterGone."""
        return await self._open("session", b"", within_s)

    async def unix(self, path: str, *, within_s: float = HOST_ANSWER_S) -> Channel:
        """A channel to a unix socket there. Raises Refused where nobody listens or it is not allowed, MasterGone."""
        try:
            return await self._open(STREAMLOCAL, string(path) + string("") + u32(0), within_s)
        except Refused as error:  # sshd says the same of both
            raise Refused(f"{error}: nobody listens at {path}, or the host forbids it", hint=_FORBIDS) from error

    async def tcp(self, host: str, port: int, *, within_s: float = HOST_ANSWER_S) -> Channel:
        """A channel to a port, `host` as the server knows it. Raises Refused where nobody listens, MasterGone."""
        origin = string("127.0.0.1") + u32(0)
        return await self._open("direct-tcpip", string(host) + u32(port) + origin, within_s)

    async def ended(self) -> None:
        """Wait until the other end has hung up."""
        await asyncio.wait([self._task])

    async def close(self) -> None:
        """Close every channel, and hang up when the server has too."""
        for channel in list(self._channels.values()):
            channel.give_up()
        closed = asyncio.get_running_loop().create_task(self._is_empty.wait())
        try:
            await asyncio.wait([closed], timeout=LAST_WORDS_S)  # wait_for would keep a cancellation to itself
        finally:
            closed.cancel()
            if self._why is None and (self._was_refused or self._channels):
                self._leave_open()
            self._end(MasterGone("the connection was closed here"))
            self._task.cancel()
        await asyncio.wait([self._task])

    def _leave_open(self) -> None:
        """Let a process hold the socket until the master ends.

        A channel that was refused, or not answered yet, stays in its client's name in the master. When the client goes,
        the master would close it, find that the server gave it no number, and end itself with all that others have
        through it (OpenSSH: channel_proxy_upstream in channels.c, chan_send_close2 in nchan.c). One that the server has
        not closed yet is worse: the master writes to who has gone, forgets it, and goes on with its memory.
        """
        self._socket.setblocking(True)
        holding = ["sh", "-c", "exec 3<&0; cat <&3 3<&- >/dev/null 2>&1 &"]
        subprocess.run(holding, stdin=self._socket.fileno(), cwd="/", start_new_session=True, check=True)

    async def _open(self, kind: str, more: bytes, within_s: float) -> Channel:
        channel = Channel(self, next(self._numbers))
        self.post(OPEN, string(kind) + u32(channel.number, WINDOW_BYTES, PACKET_BYTES) + more)
        self._channels[channel.number] = channel
        self._is_empty.clear()
        try:
            await self.answered(channel.opened, within_s, f"a channel of kind {kind}")
        except BaseException:
            channel.give_up()
            raise
        return channel

    async def answered(self, answer: asyncio.Future[bool], within_s: float, what: str) -> bool:
        """Wait for an answer of the server. Raises MasterGone when it does not come in time."""
        await asyncio.wait([answer], timeout=within_s)
        if not answer.done():
            raise MasterGone(f"no answer within {within_s:g} s about {what}")
        return answer.result()

    def post(self, kind: int, body: bytes) -> None:
        """One message, after those before it. Raises MasterGone."""
        if self._why is None:
            self._unsent += wire.framed(b"\0" + bytes([kind]) + body)
            self._flush()
        if self._why is not None:
            raise self._why

    async def has_room(self) -> None:
        """Wait until most of what was posted is sent, or the connection has ended."""
        await self._has_room.wait()

    def _flush(self) -> None:
        """Send what the socket takes now, and the rest as soon as it takes more."""
        loop = asyncio.get_running_loop()
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            loop.add_writer(self._socket, self._flush)
        except OSError as error:
            self._end(MasterGone(f"the master has hung up: {error.strerror or error}"))
        else:
            loop.remove_writer(self._socket)
        if len(self._unsent) <= UNSENT_BYTES:
            self._has_room.set()
        else:
            self._has_room.clear()

    def forget(self, channel: Channel) -> None:
        """It is closed on both sides; its number is not used again."""
        self._channels.pop(channel.number, None)
        if not self._channels:
            self._is_empty.set()

    async def _receive(self) -> None:
        """Hand out what comes, until the master hangs up."""
        try:
            while True:
                size = Reader(await self._exactly(4)).u32()
                if not 2 <= size <= wire.MOST_BYTES:
                    raise Malformed(f"a message of {size} bytes")
                message = Reader(await self._exactly(size))
                message.byte()  # of padding: none
                await self._take(message.byte(), message)
        except MasterGone as error:
            self._end(error)
        except (OSError, Malformed) as error:
            self._end(MasterGone(f"the master has hung up: {getattr(error, 'strerror', None) or error}"))

    async def _exactly(self, size: int) -> bytes:
        """What comes at once is taken at once: a message is mostly whole, with others behind it."""
        loop = asyncio.get_running_loop()
        while len(self._have) < size:
            part = await loop.sock_recv(self._socket, READ_BYTES)
            if not part:
                raise ConnectionResetError("closed")
            self.heard_s = time.monotonic()
            self._have += part
        taken = bytes(memoryview(self._have)[:size])
        del self._have[:size]
        return taken

    async def _take(self, kind: int, message: Reader) -> None:
        if kind == GLOBAL_REQUEST:
            message.string()
            if message.byte():
                self.post(REQUEST_FAILURE, b"")
            return
        if kind == OPEN and self._accept is not None:
            asked, theirs, room, most = message.text(), message.u32(), message.u32(), message.u32()
            offered = Channel(self, next(self._numbers), (theirs, room, most))
            self._channels[offered.number] = offered
            self._accept(offered, asked, message)
            return
        if not OPEN_CONFIRMATION <= kind <= FAILURE:
            return  # not about a channel of ours
        self._was_refused |= kind == OPEN_FAILURE
        channel = self._channels.get(message.u32())
        if channel is not None:
            await channel.take(kind, message)

    def _end(self, why: Exception) -> None:
        """Wakes all who wait. The socket is closed when its reader has ended: before, its number could be another's."""
        if self._why is None:
            self._why = why
            asyncio.get_running_loop().remove_writer(self._socket)
        self._has_room.set()
        for channel in list(self._channels.values()):
            channel.lose(self._why)
        self._channels.clear()
        self._is_empty.set()


class Channel:
    """One channel: bytes both ways, and for a session a command and its end."""

    def __init__(self, connection: Connection, number: int, theirs: tuple[int, int, int] = (0, 0, 0)) -> None:
        """theirs: their number, what they take, and their largest packet, where they are known already."""
        self._connection, self.number = connection, number
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[bool] = loop.create_future()
        self._ended: asyncio.Future[Exit] = loop.create_future()
        self._answers: list[asyncio.Future[bool]] = []
        self._theirs, self._room, self._most = theirs
        self._allowed = WINDOW_BYTES  # that the other side may send
        self._owed = 0  # bytes read here that the other side may send again
        self._streams = {0: _Stream(), _STDERR: _Stream()}
        self._moved = asyncio.Condition()
        self._exit = Exit()
        self._lost: Exception | None = None
        self._is_open = self._is_unwanted = self._closing = False
        self.requested: Callable[[str, Reader], bool] = lambda _request, _more: False  # whether it is granted

    async def exec(self, command: str, *, within_s: float = HOST_ANSWER_S) -> None:
        """Run `command` in the user's shell. Raises Refused, MasterGone."""
        await self.ask("exec", string(command), within_s)

    async def signal(self, name: str) -> None:
        """Send a signal, named without SIG, to the remote process group. Raises MasterGone.

        Nothing tells whether it arrived: the server drops one that comes before the command has its group, or when it
        was told to run another command.
        """
        self._post(REQUEST, string("signal") + FALSE + string(name))

    async def read(self, *, stderr: bool = False) -> bytes:
        """What has come, at least a byte; b"" at its end. Raises MasterGone when the link went before that."""
        stream = self._streams[_STDERR if stderr else 0]
        async with self._moved:
            await self._moved.wait_for(lambda: stream.parts or stream.over or self._lost)
        if not stream.parts and not stream.over and self._lost is not None:
            raise self._lost
        taken = b"".join(stream.parts)  # nothing is awaited from here on: who is cancelled has lost no byte
        stream.parts.clear()
        self._allow(len(taken))
        return taken

    async def write(self, data: bytes, *, stderr: bool = False) -> None:
        """All of it, as fast as the other side takes it. Raises MasterGone, BrokenPipeError when that has closed."""
        kind, stream = (EXTENDED_DATA, u32(_STDERR)) if stderr else (DATA, b"")
        view = memoryview(data)
        while view:
            await self._connection.has_room()
            async with self._moved:
                await self._moved.wait_for(lambda: self._room or self._lost or self._closing)
                if self._lost is not None:
                    raise self._lost
                size = min(len(view), self._room, self._most)
                if not self._post(kind, stream + string(bytes(view[:size]))):
                    raise BrokenPipeError("the other side has closed the channel")
                self._room -= size
            view = view[size:]

    async def end(self) -> None:
        """Nothing more will be written; no matter where the command has ended already. Raises MasterGone."""
        self._post(EOF, b"")

    async def wait(self) -> Exit:
        """How the command ended. Raises MasterGone."""
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """Give the channel up, whatever the other side does with it."""
        self.give_up()

    def give_up(self) -> None:
        """Close it now, or as soon as it is open: else the server would keep a session for nobody."""
        self._is_unwanted = True
        if self._is_open and self._lost is None:
            with contextlib.suppress(MasterGone):
                self._post(CLOSE, b"")

    async def ask(self, request: str, more: bytes, within_s: float) -> None:
        """A request of RFC 4254, section 6. Raises Refused, MasterGone."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if not self._post(REQUEST, string(request) + TRUE + more):
            raise Refused(f"the server has closed the channel before {request}")
        self._answers.append(answer)
        if not await self._connection.answered(answer, within_s, request):
            raise Refused(f"the server refused {request}")

    def _post(self, kind: int, body: bytes) -> bool:
        """False when we have closed the channel before: a word about one ends the whole connection of the server."""
        if self._closing:
            return False
        self._closing = kind == CLOSE
        self._connection.post(kind, u32(self._theirs) + body)
        return True

    def _allow(self, size: int) -> None:
        self._owed += size
        if self._owed >= WINDOW_BYTES // 8 and self._lost is None:
            owed, self._owed = self._owed, 0
            self._allowed += owed
            with contextlib.suppress(MasterGone):  # who reads on is told
                self._post(WINDOW_ADJUST, u32(owed))

    # -- for who serves it

    def confirm(self) -> None:
        """It is open. Raises MasterGone."""
        self._is_open = True
        self._connection.post(OPEN_CONFIRMATION, u32(self._theirs, self.number, WINDOW_BYTES, PACKET_BYTES))

    def refuse(self, why: str) -> None:
        """It is not. Raises MasterGone."""
        self._connection.forget(self)
        self._connection.post(OPEN_FAILURE, u32(self._theirs, _CONNECT_FAILED) + string(why) + string(""))

    def exited(self, status: int) -> None:
        """How the command ended, negative for a signal. Raises MasterGone."""
        if status >= 0:
            self._post(REQUEST, string("exit-status") + FALSE + u32(status))
        else:
            name = next((one.name.removeprefix("SIG") for one in signal.Signals if one == -status), str(-status))
            self._post(REQUEST, string("exit-signal") + FALSE + string(name) + FALSE + string("") + string(""))

    # -- from the connection

    async def take(self, kind: int, message: Reader) -> None:
        """A message about this channel."""
        if kind == OPEN_CONFIRMATION:
            self._theirs, self._room, self._most = message.u32(), message.u32(), message.u32()
            self._is_open = True
            _settle(self.opened, result=True)
            if self._is_unwanted:
                self.give_up()
        elif kind == OPEN_FAILURE:
            why = "it is not allowed there" if message.u32() == _PROHIBITED else message.text()
            _settle(self.opened, error=Refused(f"the server opened no channel: {why}"))
            self._connection.forget(self)
        elif kind in (SUCCESS, FAILURE):
            if not self._answers:
                raise Malformed("an answer to no request")
            _settle(self._answers.pop(0), result=kind == SUCCESS)
        elif kind == REQUEST:
            self._requested(message)
        else:
            await self._changed(kind, message)

    def _requested(self, message: Reader) -> None:
        request, wants_answer = message.text(), message.byte()
        if request == "exit-status":
            self._exit = Exit(status=message.u32())
        elif request == "exit-signal":
            self._exit = Exit(signal=message.text())
        is_granted = self.requested(request, message)
        if wants_answer:
            self._post(SUCCESS if is_granted else FAILURE, b"")

    async def _changed(self, kind: int, message: Reader) -> None:
        async with self._moved:
            if kind == WINDOW_ADJUST:
                self._room += message.u32()
            elif kind == DATA:
                self._came(self._streams[0], message.string())
            elif kind == EXTENDED_DATA:
                self._came(self._streams.get(message.u32(), _Stream()), message.string())
            else:
                for stream in self._streams.values():
                    stream.over = True
            if kind == CLOSE:
                self.give_up()
            self._moved.notify_all()
        if kind == CLOSE:
            self._connection.forget(self)
            for answer in self._answers:
                _settle(answer, result=False)
            _settle(self._ended, result=self._exit)

    def _came(self, stream: _Stream, data: bytes) -> None:
        """Raises Malformed past the window: nobody else keeps a server from filling our memory."""
        self._allowed -= len(data)
        if self._allowed < 0:
            raise Malformed(f"{-self._allowed} bytes more than channel {self.number} allows")
        stream.parts.append(data)

    def lose(self, why: Exception) -> None:
        """The link is gone."""
        self._lost = why
        waited: list[asyncio.Future[Any]] = [self.opened, self._ended, *self._answers]
        for future in waited:
            _settle(future, error=why)
        asyncio.get_running_loop().create_task(self._wake())

    async def _wake(self) -> None:
        async with self._moved:
            self._moved.notify_all()


class _Stream:
    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.over = False


def _settle(future: asyncio.Future[Any], *, result: Any = None, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
        future.exception()  # somebody may never ask


async def session_when_free(connection: Connection, within_s: float) -> Channel:
    """One as soon as the server has a slot: it says no at once, and frees a slot some time after a command's end.

    Each refusal costs the master a channel that it never gives back, so the attempts become rare.
    """
    return await when_free(connection.session, within_s)


T = TypeVar("T")


async def when_free(attempt: Callable[[], Awaitable[T]], within_s: float) -> T:
    """What needs a session, tried until the server has a slot for it. Raises Refused, MasterGone."""
    deadline_s, wait_s = time.monotonic() + within_s, _AGAIN_S
    while True:
        try:
            return await attempt()
        except Refused as error:
            if time.monotonic() + wait_s > deadline_s:
                raise Refused(
                    f"the server has opened no other session for {within_s:g} s",
                    hint="wait for the commands that run there, or raise MaxSessions in its sshd_config",
                ) from error
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LATEST_S)
