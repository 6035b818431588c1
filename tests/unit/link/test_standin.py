"""What stands in for a master, in front of a real `holdfast node channels`; all of it without ssh."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

import pytest

from holdfast import process
from holdfast.link import mux, standin
from holdfast.link.channels import Channel, Connection, Exit
from holdfast.link.mux import Refused
from holdfast.link.standin import Standin
from holdfast.link.wire import Reader
from tests.children import ended
from tests.waiting import until

T = TypeVar("T")


def standing(path: Path, work: Callable[[Standin], Coroutine[object, object, T]]) -> T:
    """What `work` makes of one at `path`."""

    async def run() -> T:
        here, there = socket.socketpair()
        stream, streams = socket.socketpair()
        for each in (here, there, stream):
            each.setblocking(False)
        carrying: list[asyncio.Task[None]] = []

        def serve(channel: Channel, _kind: str, _more: Reader) -> None:
            channel.requested = lambda *_: True
            channel.confirm()
            carrying.extend(asyncio.get_running_loop().create_task(each) for each in _carried(channel, stream))

        words = [sys.executable, "-m", "holdfast", "node", "channels"]
        with stream, ended(subprocess.Popen(words, stdin=streams, stdout=streams)):
            streams.close()
            server, client = Connection(there, serve), Connection(here)
            made = await standin.begin(client, "begin", path)
            try:
                return await asyncio.wait_for(work(made), 30)
            finally:
                await made.close()
                for connection in (client, server):
                    await connection.close()
                for task in carrying:
                    task.cancel()
                await asyncio.gather(*carrying, return_exceptions=True)

    return asyncio.run(run())


def _carried(channel: Channel, stream: socket.socket) -> tuple[Coroutine[object, object, None], ...]:
    """Both ways, as a server does for the streams of a command."""

    async def there() -> None:
        while part := await channel.read():
            await asyncio.get_running_loop().sock_sendall(stream, part)

    async def back() -> None:
        while part := await asyncio.get_running_loop().sock_recv(stream, 1 << 16):
            await channel.write(part)

    return there(), back()


async def ridden(path: Path, command: str, given: Path, told: Path) -> int:
    with given.open("rb") as i, told.open("wb") as o:
        rider = await mux.passenger(str(path), command, [i.fileno(), o.fileno(), o.fileno()])
    return await rider.wait()


def test_its_socket_is_for_us_alone_and_goes_with_its_session(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def work(made: Standin) -> int:
        assert await mux.alive(str(path)) == os.getpid()
        mode = path.stat().st_mode
        await made.close()
        return stat.S_IMODE(mode)

    assert standing(path, work) == 0o600
    assert not path.exists()


@pytest.mark.parametrize(("command", "status"), [("exit 7", 7), ("exit 0", 0), ("kill -9 $$", 255)])
def test_the_end_of_a_command_is_told_as_a_master_does(tmp_path: Path, command: str, status: int) -> None:
    given = tmp_path / "given"
    given.write_bytes(os.urandom(1 << 20))

    assert (
        standing(tmp_path / "s", lambda _: ridden(tmp_path / "s", f"cat; {command}", given, tmp_path / "told"))
        == status
    )
    assert (tmp_path / "told").read_bytes() == given.read_bytes()


def test_who_asks_for_a_subsystem_is_refused(tmp_path: Path) -> None:
    async def work(_: Standin) -> None:
        with Path(os.devnull).open("r+b") as nothing, pytest.raises(Refused, match="carries no terminal"):
            await mux.passenger(str(tmp_path / "s"), "sftp", [nothing.fileno()] * 3, subsystem=True)

    standing(tmp_path / "s", work)


def test_a_command_that_nobody_reads_any_more_hears_of_it(tmp_path: Path) -> None:
    """And we are hung up, as a master does."""

    async def work(_: Standin) -> None:
        ours, its = os.pipe()
        with Path(os.devnull).open("r+b") as nothing:
            rider = await mux.passenger(
                str(tmp_path / "s"), f"yes; touch {tmp_path}/over", [nothing.fileno(), its, nothing.fileno()]
            )
        os.close(its)
        os.close(ours)
        assert await rider.wait() == mux.BY_SIGNAL
        while not (tmp_path / "over").exists():
            await asyncio.sleep(0.01)

    standing(tmp_path / "s", work)


def test_a_signal_reaches_all_of_a_command_and_a_session_has_one(tmp_path: Path) -> None:
    async def work(_: Standin) -> tuple[Exit, int]:
        connection = Connection(await mux.proxied(str(tmp_path / "s")))
        channel = await connection.session()
        await channel.exec("sleep 60 & echo $!; wait")
        pid = int(await channel.read())
        with pytest.raises(Refused):
            await channel.exec("true")
        await channel.signal("TERM")
        over = await channel.wait()
        await connection.close()
        return over, pid

    over, pid = standing(tmp_path / "s", work)

    assert over == Exit(signal="TERM")
    until(lambda: process.identity(pid) is None)
