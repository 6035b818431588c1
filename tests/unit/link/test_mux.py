"""The control socket of a real master that leads to a real sshd."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from holdfast.link import mux, wire
from holdfast.link.channels import (
    DATA,
    EXTENDED_DATA,
    OPEN_CONFIRMATION,
    PACKET_BYTES,
    WINDOW_BYTES,
    Channel,
    Connection,
    Exit,
    session_when_free,
)
from holdfast.link.mux import End, Forward, MasterGone, Refused
from holdfast.link.wire import string, u32
from tests.labs import sshd as lab
from tests.labs.servers import free_port
from tests.waiting import until

T = TypeVar("T")
pytestmark = pytest.mark.e2e


@pytest.fixture
def path(server: lab.Sshd) -> Iterator[str]:
    with lab.master(server) as running:
        yield running


def through(path: str, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
    """What `work` makes of a connection through the master."""

    async def connected() -> T:
        connection = Connection(await mux.proxied(path))
        try:
            return await asyncio.wait_for(work(connection), 30)
        finally:
            await connection.close()

    return asyncio.run(connected())


def test_the_master_tells_its_pid_and_ends_when_told(path: str) -> None:
    pid = asyncio.run(mux.alive(path))

    assert "ssh" in Path(f"/proc/{pid}/comm").read_text()
    asyncio.run(mux.terminate(path))
    until(lambda: not Path(path).exists())
    with pytest.raises(MasterGone, match="is gone"):
        asyncio.run(mux.alive(path))


def test_a_passenger_reads_and_writes_our_descriptors(path: str, tmp_path: Path) -> None:
    given, out, err = tmp_path / "in", tmp_path / "out", tmp_path / "err"
    given.write_bytes(os.urandom(3_000_000))

    async def ride() -> int:
        with given.open("rb") as i, out.open("wb") as o, err.open("wb") as e:
            stdio = [i.fileno(), o.fileno(), e.fileno()]
            session = await mux.passenger(path, "cat; echo oops >&2; exit 7", stdio)
        return await asyncio.wait_for(session.wait(), 20)

    assert asyncio.run(ride()) == 7
    assert out.read_bytes() == given.read_bytes()
    assert err.read_text() == "oops\n"


def test_a_passenger_has_ended_when_all_it_wrote_is_here(path: str, tmp_path: Path) -> None:
    """Its exit status overtakes its last bytes about once in eight times."""
    given, out = tmp_path / "in", tmp_path / "out"
    given.write_bytes(bytes(3_000_000))

    async def ride() -> int:
        with given.open("rb") as i, out.open("wb") as o:
            session = await mux.passenger(path, "cat; exit 7", [i.fileno(), o.fileno(), o.fileno()])
        return await asyncio.wait_for(session.wait(), 20)

    for _ in range(25):
        assert (asyncio.run(ride()), out.stat().st_size) == (7, 3_000_000)


def test_a_forward_listens_until_it_is_closed(path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as behind:
        forward = Forward(End(port=free_port()), End(port=behind.getsockname()[1]))
        assert asyncio.run(mux.open_forward(path, forward)) == forward.listen.port
        with socket.create_connection(("127.0.0.1", forward.listen.port)) as here, behind.accept()[0] as there:
            here.sendall(b"hello")
            assert there.recv(5) == b"hello"
    asyncio.run(mux.close_forward(path, forward))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", forward.listen.port))


def test_a_port_that_is_taken_is_refused(path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Refused, match="refused"):
        asyncio.run(mux.open_forward(path, Forward(End(port=taken.getsockname()[1]), End(port=1))))


def test_a_remote_port_may_be_the_servers_choice(path: str) -> None:
    forward = Forward(End(port=0), End(port=1), remote=True)

    assert asyncio.run(mux.open_forward(path, forward)) > 1024


def test_a_frozen_master_costs_no_more_than_the_deadline(path: str) -> None:
    pid = asyncio.run(mux.alive(path))
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(MasterGone, match=r"did not answer within 0\.2 s"):
            asyncio.run(mux.alive(path, within_s=0.2))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert asyncio.run(mux.alive(path)) == pid


def test_a_session_gives_output_errors_and_its_end(path: str) -> None:
    async def work(connection: Connection) -> tuple[bytes, bytes, Exit]:
        channel = await connection.session()
        await channel.exec("cat; echo oops >&2; exit 3")
        await channel.write(b"in")
        await channel.end()
        return await all_of(channel), await channel.read(stderr=True), await channel.wait()

    assert through(path, work) == (b"in", b"oops\n", Exit(status=3))


async def all_of(channel: Channel) -> bytes:
    parts = []
    while part := await channel.read():
        parts.append(part)
    return b"".join(parts)


def test_many_sessions_at_once_keep_their_bytes_apart(path: str) -> None:
    async def one(connection: Connection, number: int) -> str:
        channel = await connection.session()
        await channel.exec(f"head -c 1000000 /dev/zero | tr '\\0' {number}")
        return hashlib.sha256(await all_of(channel)).hexdigest()

    async def work(connection: Connection) -> list[str]:
        return list(await asyncio.gather(*(one(connection, number) for number in range(6))))

    assert through(path, work) == [hashlib.sha256(str(n).encode() * 1_000_000).hexdigest() for n in range(6)]


def test_what_nobody_reads_does_not_stop_the_others(path: str) -> None:
    async def work(connection: Connection) -> bytes:
        full = await connection.session()
        await full.exec("head -c 50000000 /dev/zero")
        other = await connection.session()
        await other.exec("echo here")
        said = await all_of(other)
        assert len(await all_of(full)) == 50_000_000
        return said

    assert through(path, work) == b"here\n"


def test_much_can_be_written_to_who_reads_slowly(path: str) -> None:
    sent = os.urandom(5_000_000)

    async def work(connection: Connection) -> bytes:
        channel = await connection.session()
        await channel.exec("sha256sum")
        await channel.write(sent)
        await channel.end()
        return await all_of(channel)

    assert through(path, work).split()[0].decode() == hashlib.sha256(sent).hexdigest()


def test_a_signal_ends_the_remote_process_and_is_told(path: str) -> None:
    async def work(connection: Connection) -> Exit:
        channel = await connection.session()
        await channel.exec("echo up; exec sleep 60")
        assert await channel.read() == b"up\n"
        await channel.signal("TERM")
        return await channel.wait()

    assert through(path, work) == Exit(signal="TERM")


def test_a_ping_goes_to_the_server_and_back(path: str, server: lab.Sshd) -> None:
    sessions = server.log.count("Starting session")

    assert 0 < through(path, lambda connection: connection.ping()) < 5
    assert server.log.count("Starting session") == sessions


def test_what_does_not_come_back_is_seen_by_a_ping(path: str) -> None:
    async def work(connection: Connection) -> None:
        await connection.ping()
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(MasterGone, match=r"no answer within 0\.2 s"):
                await connection.ping(within_s=0.2)
        finally:
            os.kill(pid, signal.SIGCONT)
        await connection.ping()

    pid = asyncio.run(mux.alive(path))
    through(path, work)


def test_a_unix_socket_of_the_server_is_reached(path: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        there = Path(folder) / "s"
        Path(folder).chmod(0o755)
        listener.bind(str(there))
        there.chmod(0o666)
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(peer.recv(4).upper())

        thread = threading.Thread(target=answer)
        thread.start()

        async def work(connection: Connection) -> bytes:
            channel = await connection.unix(str(there))
            await channel.write(b"ping")
            return await all_of(channel)

        assert through(path, work) == b"PING"
        thread.join()


def test_a_socket_nobody_listens_on_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="opened no channel"):
        through(path, lambda connection: connection.unix(str(tmp_path / "none")))


def test_a_master_that_dies_is_told_to_all_who_wait(path: str) -> None:
    async def work(connection: Connection) -> None:
        channel = await connection.session()
        await channel.exec("sleep 60")
        os.kill(await mux.alive(path), signal.SIGKILL)
        for waiting in (channel.read(), channel.wait(), connection.ping()):
            with pytest.raises(MasterGone):
                await waiting

    through(path, work)


def test_a_refusal_and_pings_leave_the_master_to_the_others(path: str, tmp_path: Path) -> None:
    """OpenSSH's master ends itself when who was refused a channel hangs up."""

    async def refused(connection: Connection) -> None:
        with pytest.raises(Refused):
            await connection.unix(str(tmp_path / "none"))

    pid = asyncio.run(mux.alive(path))
    for work in (refused, Connection.ping, Connection.ping):
        through(path, work)
    assert asyncio.run(mux.alive(path)) == pid


def test_sessions_nobody_waits_for_any_more_cost_no_slot_and_not_the_master(path: str, server: lab.Sshd) -> None:
    async def leave(connection: Connection) -> None:
        """Before the server has answered."""
        silent = connections(server)
        for each in silent:
            with contextlib.suppress(ProcessLookupError):  # of a connection of the test before
                os.kill(each, signal.SIGSTOP)
        asking = [asyncio.ensure_future(connection.session()) for _ in range(10)]
        await asyncio.wait(asking, timeout=0.1)
        for task in asking:
            task.cancel()
        for each in silent:
            asyncio.get_running_loop().call_later(0.2, go_on, each)

    def go_on(each: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGCONT)

    async def use(connection: Connection) -> None:
        for _ in range(10):
            await session_when_free(connection, 20)  # a slot comes free some time after its channel is closed

    pid = asyncio.run(mux.alive(path))
    through(path, leave)
    through(path, use)
    assert asyncio.run(mux.alive(path)) == pid


def connections(server: lab.Sshd) -> list[int]:
    """The server's processes, without the one that listens."""
    found: list[int] = []
    waiting = [server.pid]
    while waiting:
        argv = ["pgrep", "-P", str(waiting.pop())]
        listed = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        found += (children := [int(word) for word in listed.split()])
        waiting += children
    return found


def test_who_is_cancelled_does_not_cut_a_message(path: str) -> None:
    async def work(connection: Connection) -> None:
        channel = await connection.session()
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(channel.exec("#" * 250_000), 0.2)  # more than the socket takes
        finally:
            os.kill(pid, signal.SIGCONT)
        await connection.ping()

    pid = asyncio.run(mux.alive(path))
    through(path, work)


def test_a_server_that_sends_more_than_it_may_is_left() -> None:
    async def flooded() -> tuple[int, str]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        connection = Connection(ours)
        with theirs:
            opening = loop.create_task(connection.session())
            await wire.received(theirs)
            data = b"\0" + bytes([DATA]) + u32(0) + string(bytes(PACKET_BYTES))
            messages = [b"\0" + bytes([OPEN_CONFIRMATION]) + u32(0, 0, 0, 0), *[data] * (WINDOW_BYTES // PACKET_BYTES)]
            for message in messages:
                await loop.sock_sendall(theirs, wire.framed(message))
            channel = await opening
            too_much = b"\0" + bytes([EXTENDED_DATA]) + u32(0, 1) + string(b"x")
            await loop.sock_sendall(theirs, wire.framed(too_much))
            await asyncio.wait_for(connection.ended(), 20)
        with pytest.raises(MasterGone) as gone:
            while came := await channel.read():
                size = len(came)
        await connection.close()
        return size, str(gone.value)

    assert asyncio.run(flooded()) == (
        WINDOW_BYTES,
        "the master has hung up: 1 bytes more than channel 0 allows",
    )


def test_who_is_cancelled_while_a_connection_closes_is_told(path: str) -> None:
    """An agent that is told to end hears it at whatever moment."""

    async def cancelled_after(steps: int) -> None:
        connection = Connection(await mux.proxied(path))
        await connection.ping()
        closing = asyncio.ensure_future(connection.close())
        for _ in range(steps):
            await asyncio.sleep(0)
        if closing.cancel():
            with pytest.raises(asyncio.CancelledError):
                await closing

    for steps in range(8):
        asyncio.run(cancelled_after(steps))
    assert asyncio.run(mux.alive(path)) > 1
