"""Clients that share one stream, each with a connection of its own, and both ends of that stream in this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import TypeVar

import pytest

from holdfast.link import wire
from holdfast.link.channels import CLOSE, FAILURE, GLOBAL_REQUEST, OPEN_CONFIRMATION, Channel, Connection
from holdfast.link.mux import MasterGone, Refused
from holdfast.link.switch import Switch
from holdfast.link.wire import TRUE, Reader, string, u32

T = TypeVar("T")


class Lab:
    """A switch, its stream, and at the other end of that what serves channels: `offered`, as they come."""

    def __init__(self) -> None:
        self.offered: asyncio.Queue[tuple[Channel, str]] = asyncio.Queue()
        self.is_read = asyncio.Event()  # the stream, at its other end
        self.is_read.set()
        self._tasks: list[asyncio.Task[None]] = []
        self._sockets: list[socket.socket] = []
        self._connections: list[Connection] = []

    async def begin(self) -> None:
        here, there = self._pair()
        self._kept(Connection(there, self._carry))
        self._stream = await self._kept(Connection(here)).session()
        self.switch = Switch(self._stream, b"")
        self.running = self._do(self.switch.run())

    async def end(self) -> None:
        for connection in self._connections:
            await connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for each in self._sockets:
            each.close()

    async def raw(self) -> socket.socket:
        """A client that nobody speaks for yet."""
        ours, theirs = self._pair()
        self._do(self.switch.serve(*await asyncio.open_connection(sock=theirs)))
        return ours

    async def client(self) -> Connection:
        return self._kept(Connection(await self.raw()))

    async def said(self, message: bytes) -> None:
        """By the other end of the stream, as it is."""
        await self._far.write(wire.framed(message))

    def _carry(self, channel: Channel, _kind: str, _more: Reader) -> None:
        channel.confirm()
        self._far = channel
        stream, served = self._pair()
        self._kept(Connection(served, lambda one, kind, _: self.offered.put_nowait((one, kind))))
        self._do(self._take(channel, stream))
        self._do(self._give(stream, channel))

    async def _take(self, channel: Channel, stream: socket.socket) -> None:
        while part := await channel.read():
            await self.is_read.wait()
            await asyncio.get_running_loop().sock_sendall(stream, part)

    async def _give(self, stream: socket.socket, channel: Channel) -> None:
        while part := await asyncio.get_running_loop().sock_recv(stream, 1 << 16):
            await channel.write(part)

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        both = socket.socketpair()
        for each in both:
            each.setblocking(False)
        self._sockets += both
        return both

    def _kept(self, connection: Connection) -> Connection:
        self._connections.append(connection)
        return connection

    def _do(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        return task


def with_lab(work: Callable[[Lab], Coroutine[object, object, T]]) -> T:
    async def run() -> T:
        lab = Lab()
        await lab.begin()
        try:
            return await asyncio.wait_for(work(lab), 30)
        finally:
            await lab.end()

    return asyncio.run(run())


async def opened(lab: Lab, client: Connection) -> tuple[Channel, Channel]:
    """Both ends of a new channel, the client's first."""
    opening = asyncio.get_running_loop().create_task(client.session())
    there, _ = await lab.offered.get()
    there.confirm()
    return await opening, there


def test_clients_that_number_alike_are_kept_apart() -> None:
    async def work(lab: Lab) -> list[bytes]:
        ends = [await opened(lab, await lab.client()) for _ in range(3)]
        assert {here.number for here, _ in ends} == {0}
        for name, (here, there) in zip((b"a", b"b", b"c"), ends, strict=True):
            await here.write(name)
            await there.write(await there.read() * 2)
        return [await here.read() for here, _ in ends]

    assert with_lab(work) == [b"aa", b"bb", b"cc"]


def test_what_a_client_has_left_open_is_closed_for_it() -> None:
    async def work(lab: Lab) -> None:
        leaving, staying = await lab.raw(), await lab.client()
        client = Connection(leaving)
        _, there = await opened(lab, client)
        opening = asyncio.get_running_loop().create_task(client.session())
        late, _ = await lab.offered.get()
        leaving.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(MasterGone):
            await opening
        assert await there.read() == b""
        late.confirm()  # when nobody is there any more
        assert await late.read() == b""
        here, other = await opened(lab, staying)
        await other.write(b"still")
        assert await here.read() == b"still"

    with_lab(work)


def test_a_refusal_reaches_who_has_asked() -> None:
    async def work(lab: Lab) -> None:
        client = await lab.client()
        opening = asyncio.get_running_loop().create_task(client.unix("/nobody"))
        there, kind = await lab.offered.get()
        assert kind == "direct-streamlocal@openssh.com"
        there.refuse("nobody listens")
        with pytest.raises(Refused, match="nobody listens"):
            await opening

    with_lab(work)


def test_nothing_is_kept_of_channels_that_were_closed_or_refused() -> None:
    async def work(lab: Lab) -> None:
        client = await lab.client()
        here, _ = await opened(lab, client)
        opening = asyncio.get_running_loop().create_task(client.session())
        (await lab.offered.get())[0].refuse("no")
        with pytest.raises(Refused):
            await opening
        await here.close()
        while lab.switch._routes:
            await asyncio.sleep(0.01)

    with_lab(work)


def test_who_sends_more_than_the_stream_takes_waits() -> None:
    """What eight windows allow is 16 MiB; half of that is in buffers where nobody reads the stream."""
    sent = []

    async def fill(here: Channel) -> None:
        while True:
            await here.write(bytes(1 << 14))
            sent.append(1 << 14)

    async def work(lab: Lab) -> None:
        channels = [await opened(lab, await lab.client()) for _ in range(8)]
        lab.is_read.clear()
        filling = [asyncio.get_running_loop().create_task(fill(here)) for here, _ in channels]
        before = -1
        while before != len(sent):
            before = len(sent)
            await asyncio.wait(filling, timeout=0.3)
        for task in filling:
            task.cancel()
        lab.is_read.set()

    with_lab(work)
    assert sum(sent) < 12 << 20


def test_what_is_about_no_channel_is_for_no_client() -> None:
    """What the other end asks, and what it answers to a client that asks."""
    ask = b"\0" + bytes([GLOBAL_REQUEST]) + string("keepalive@openssh.com") + TRUE

    async def work(lab: Lab) -> tuple[bytes, bytes]:
        asking, client = await lab.raw(), await lab.client()
        here, there = await opened(lab, client)
        with asking:
            await asyncio.get_running_loop().sock_sendall(asking, wire.framed(ask))
            second, other = await opened(lab, Connection(asking))
            await lab.said(ask)
            await lab.said(b"\0" + bytes([FAILURE + 1]) + u32(77))
            await other.write(b"after")
            got = await second.read()
        await there.write(b"still")
        return got, await here.read()

    assert with_lab(work) == (b"after", b"still")


@pytest.mark.parametrize(
    "message",
    [
        b"\0" + bytes([CLOSE]) + u32(7),  # about a channel that nobody has
        b"\0" + bytes([OPEN_CONFIRMATION]) + u32(0),  # and no number of theirs
        b"\0" + bytes([OPEN_CONFIRMATION]),
        b"\0" + bytes([CLOSE]) + u32(0) + bytes(wire.MOST_BYTES),
    ],
)
def test_an_end_that_says_nonsense_is_left_and_all_clients_are_hung_up(message: bytes) -> None:
    async def work(lab: Lab) -> None:
        client = await lab.client()
        here, _ = await opened(lab, client)
        await lab.said(message)
        await asyncio.wait([lab.running])
        with pytest.raises(MasterGone):
            await here.read()

    with_lab(work)


@pytest.mark.parametrize("message", [b"", b"\0\0\0\x01x", b"\xff\xff\xff\xff", b"\0\0\0\x06\0\x5a\0\0\0\xff"])
def test_a_client_that_says_nonsense_is_hung_up_and_the_others_stay(message: bytes) -> None:
    async def work(lab: Lab) -> None:
        wrong, right = await lab.raw(), await lab.client()
        loop = asyncio.get_running_loop()
        with wrong:
            await loop.sock_sendall(wrong, message)
            wrong.shutdown(socket.SHUT_WR)
            assert await loop.sock_recv(wrong, 1) == b""
        here, there = await opened(lab, right)
        await there.write(b"here")
        assert await here.read() == b"here"

    with_lab(work)
