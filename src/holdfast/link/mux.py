"""The control socket of an OpenSSH master (PROTOCOL.mux, version 4), without a process of ssh in between.

Each call here is a connection of its own to the socket, about 40 µs, and has a deadline: a master whose network is gone
still accepts, and would let us wait for ever. Nothing falls back to another connection by itself.

`passenger` gives the master three descriptors to read and write: for bulk data, which this process never touches.
`proxied` is a socket on which `channels.py` speaks the connection protocol itself: for everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from holdfast.deadline import within
from holdfast.errors import HostUnreachable
from holdfast.link import wire
from holdfast.link.descriptors import readable
from holdfast.link.wire import Malformed, Reader, string, u32

VERSION = 4
ANSWER_S = 10.0  # of the master
HOST_ANSWER_S = 30.0  # of the host, which may lie behind what others send over a slow way; a dead one is told before

BY_SIGNAL = 255  # in place of an exit status, as ssh has it
HELLO = 0x00000001
NEW_SESSION, ALIVE_CHECK, TERMINATE = 0x10000002, 0x10000004, 0x10000005
OPEN_FORWARD, CLOSE_FORWARD, STOP_LISTENING, PROXY = 0x10000006, 0x10000007, 0x10000009, 0x1000000F
OK, DENIED, FAILURE, EXIT = 0x80000001, 0x80000002, 0x80000003, 0x80000004
ALIVE, SESSION_OPENED, REMOTE_PORT, TTY_FAILED, PROXY_ON = (
    0x80000005, 0x80000006, 0x80000007, 0x80000008, 0x8000000F,
)  # fmt: skip
_NO_ESCAPE = 0xFFFFFFFF
_PATH = 0xFFFFFFFE  # in place of a port: the host is the path of a unix socket
_REQUEST = 0  # one request a connection, so any number does


class MasterGone(HostUnreachable):
    """Nobody listens on the control socket, or it was closed, or did not answer in time."""


class Silent(MasterGone):
    """It accepts, and does not answer: it is stopped, or the machine hangs."""


class Refused(HostUnreachable):
    """The master, or the server behind it, said no."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a forward: a port of a host, or with port 0 and `path` a unix socket. Host "" is loopback."""

    host: str = "127.0.0.1"
    port: int = 0
    path: str = ""

    def encoded(self) -> bytes:
        return string(self.path) + u32(_PATH) if self.path else string(self.host) + u32(self.port)

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Forward:
    """`listen` is here and `connect` there; with `remote` the other way round."""

    listen: End
    connect: End
    remote: bool = False

    def encoded(self) -> bytes:
        return u32(2 if self.remote else 1) + self.listen.encoded() + self.connect.encoded()


async def alive(path: str, *, within_s: float = ANSWER_S) -> int:
    """The pid of the master; says nothing about the network. Raises MasterGone."""
    _, answer = await _ask(path, within_s, ALIVE_CHECK, b"", ALIVE)
    return answer.u32()


async def terminate(path: str, *, within_s: float = ANSWER_S) -> None:
    """Let the master end at once, which it does also when its network is gone. Raises Silent, Refused."""
    try:
        await _ask(path, within_s, TERMINATE, b"", OK)
    except Silent:
        raise
    except MasterGone:
        return  # it may end before it answers


async def stop_listening(path: str, *, within_s: float = ANSWER_S) -> None:
    """Let the master take nobody new and remove its socket; what it has goes on. Raises MasterGone, Refused."""
    await _ask(path, within_s, STOP_LISTENING, b"", OK)


async def open_forward(path: str, forward: Forward, *, within_s: float = ANSWER_S) -> int:
    """Begin a forward. Returns the port that listens, the server's choice for 0. Raises MasterGone, Refused."""
    kind, answer = await _ask(path, within_s, OPEN_FORWARD, forward.encoded(), OK, REMOTE_PORT)
    return answer.u32() if kind == REMOTE_PORT else forward.listen.port


async def close_forward(path: str, forward: Forward, *, within_s: float = ANSWER_S) -> None:
    """End a forward; connections through it go on. Raises MasterGone, Refused."""
    await _ask(path, within_s, CLOSE_FORWARD, forward.encoded(), OK)


async def passenger(
    path: str, command: str, stdio: Sequence[int], *, subsystem: bool = False, within_s: float = HOST_ANSWER_S
) -> Passenger:
    """Run `command` in the user's shell there, on three descriptors of ours, which the caller may close afterwards.

    No terminal: that would delay what is typed. Raises MasterGone, Refused.
    """
    flags = u32(0, 0, 0, int(subsystem), _NO_ESCAPE)  # no terminal, no X11, no agent
    body = string("") + flags + string("") + string(command)
    control, _, answer = await _begin(path, within_s, NEW_SESSION, body, stdio, SESSION_OPENED)
    return Passenger(control, answer.u32())


async def proxied(path: str, *, within_s: float = ANSWER_S) -> socket.socket:
    """A socket that speaks the connection protocol of SSH from now on; the caller's to close.

    Raises MasterGone, Refused.
    """
    control, _, _ = await _begin(path, within_s, PROXY, b"", (), PROXY_ON)
    return control.socket


async def _ask(path: str, within_s: float, kind: int, body: bytes, *expected: int) -> tuple[int, Reader]:
    control, answered, answer = await _begin(path, within_s, kind, body, (), *expected)
    control.close()
    return answered, answer


async def _begin(
    path: str, within_s: float, kind: int, body: bytes, descriptors: Sequence[int], *expected: int
) -> tuple[Control, int, Reader]:
    """One request on a connection of its own, which stays open. Raises Refused for an answer that is not `expected`."""
    control = Control(path)
    try:
        with _told(path, within_s):
            answered, answer = await within(control.request(kind, body, descriptors), within_s)
            if answered in (DENIED, FAILURE):
                raise Refused(f"the master at {path} refused: {answer.text()}")
            if answered not in expected:
                raise Malformed(f"an answer {answered:#x} to request {kind:#x}")
    except BaseException:
        control.close()
        raise
    return control, answered, answer


@contextlib.contextmanager
def _told(path: str, within_s: float = 0.0) -> Iterator[None]:
    try:
        yield
    except asyncio.TimeoutError:  # an OSError too, from Python 3.11 on
        raise Silent(f"the master at {path} did not answer within {within_s:g} s") from None
    except (OSError, Malformed) as error:
        raise MasterGone(f"the master at {path} is gone: {getattr(error, 'strerror', None) or error}") from error


class Passenger:
    """A session that the master drives.

    Closing it, or losing the master, does not end the remote process: let that one notice, or end it by its pid.
    """

    def __init__(self, control: Control, session: int) -> None:
        self._control, self._session = control, session

    async def wait(self) -> int:
        """The exit status of the remote command, 255 for a signal, when all it wrote is written here.

        The master tells the status as soon as it knows, and hangs up when the descriptors have everything. Of a signal
        it tells nothing. Raises MasterGone when nobody will tell any more.
        """
        status: int | None = None
        with _told(self._control.path):
            while True:
                try:
                    kind, body = await self._control.read()
                except ConnectionResetError:
                    if status is None:
                        await alive(self._control.path)  # else it is the master that has ended
                        status = BY_SIGNAL
                    break
                if kind == EXIT and body.u32() == self._session:
                    status = body.u32()
                elif kind != TTY_FAILED:
                    raise Malformed(f"a message {kind:#x} nobody asked for")
        self.close()
        return status

    def close(self) -> None:
        """Hang up."""
        self._control.close()


class Control:
    """One connection to the control socket at `path`: of a client, or, when `connected`, of who listens there."""

    def __init__(self, path: str, connected: socket.socket | None = None) -> None:
        self.path = path
        self.socket = connected or socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)

    async def request(self, kind: int, body: bytes, descriptors: Sequence[int]) -> tuple[int, Reader]:
        """Say hello, ask, and what was answered. Raises OSError, Malformed, Refused."""
        await asyncio.get_running_loop().sock_connect(self.socket, self.path)
        await self.send(u32(HELLO, VERSION))
        greeted, hello = await self.read()
        version = hello.u32()
        if (greeted, version) != (HELLO, VERSION):
            raise Refused(f"the master at {self.path} speaks version {version} of the protocol, we speak {VERSION}")
        await self.send(u32(kind, _REQUEST) + body)
        for descriptor in descriptors:
            await self._send_descriptor(descriptor)
        answered, answer = await self.read()
        answer.u32()  # our number
        return answered, answer

    async def send(self, message: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, wire.framed(message))

    async def _send_descriptor(self, descriptor: int) -> None:
        """One byte along with it, as the master expects. There is room for it: little was sent before."""
        socket.send_fds(self.socket, [b"\0"], [descriptor])

    async def receive_descriptor(self) -> int:
        """One that the client has sent; ours to close. Raises OSError, Malformed."""
        while True:
            try:
                _, received, _, _ = socket.recv_fds(self.socket, 1, 1)
            except BlockingIOError:
                await readable(self.socket.fileno())
                continue
            if not received:
                raise Malformed("no descriptor came")
            return received[0]

    async def read(self) -> tuple[int, Reader]:
        """The next message. Raises OSError, Malformed."""
        body = Reader(await wire.received(self.socket))
        return body.u32(), body

    def close(self) -> None:
        self.socket.close()
