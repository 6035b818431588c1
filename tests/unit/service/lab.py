"""A real service in a process of its own, and a proxy before its socket that cuts connections at a byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast import process
from holdfast.service import address
from holdfast.service.client import Calls, NoService, Standing
from holdfast.service.streams import unix
from tests.waiting import until


@dataclass
class Node:
    """A service that listens."""

    socket: Path
    who: process.Identity

    def children(self) -> list[int]:
        """Pids of what it has forked, the dead that nobody has asked for among them."""
        told = Path(f"/proc/{self.who.pid}/task/{self.who.pid}/children").read_text()
        return [int(word) for word in told.split()]

    def descriptors(self) -> list[str]:
        """What it has open."""
        found = []
        for entry in Path(f"/proc/{self.who.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(str(entry.readlink()))
        return found

    def memory_bytes(self) -> int:
        """The most it has ever had for itself."""
        lines = Path(f"/proc/{self.who.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

    def log(self) -> str:
        """What it did not expect."""
        log = self.socket.with_suffix(".log")
        return log.read_text() if log.exists() else ""

    def kill(self, number: int) -> None:
        process.send_signal(self.who, number)
        until(lambda: not process.alive(self.who), what="the end of the service")

    def end_next(self) -> None:
        """Of the service that began when this one was killed."""
        os.kill(ask(self.socket, lambda calls: calls.get("/ping"))["pid"], signal.SIGTERM)
        until(lambda: not self.socket.exists())


def start(*more: str) -> int:
    """As a laptop does; its exit status."""
    argv = [sys.executable, "-m", "holdfast", "node", "service", *more]
    return subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=60, check=False).returncode


@contextlib.contextmanager
def node(*more: str) -> Iterator[Node]:
    """One of HOLDFAST_HOME; it must have nothing to say at its end."""
    path = address.socket_path()

    def begun() -> process.Identity | None:
        assert start(*more) == 0
        with contextlib.suppress(NoService):  # idle for long enough since, on a busy machine
            return process.identity(ask(path, lambda calls: calls.get("/ping"))["pid"])
        return None

    running = Node(path, until(begun))
    try:
        yield running
    finally:
        if process.alive(running.who):
            running.kill(signal.SIGTERM)
        said = running.log()
        for left in path.parent.glob(f"{path.stem}.*"):
            left.unlink()
        assert not said, said


def ask(path: Path, question: Callable[[Calls], Awaitable[Any]], **options: Any) -> Any:
    """One question over a connection of its own."""

    async def asked() -> Any:
        async with Calls(unix(path), **options) as calls:
            return await question(calls)

    return asyncio.run(asyncio.wait_for(asked(), 60))


@dataclass
class Said:
    """What a call brought."""

    code: int
    out: bytes
    err: bytes
    standings: list[Standing] = field(default_factory=list)


def called(path: Path, *argv: str, stdin: bytes | None = None, **options: Any) -> Said:
    """A verb over there, with files for streams."""
    return asyncio.run(asyncio.wait_for(calling(path, *argv, stdin=stdin, **options), 100))


async def calling(path: Path, *argv: str, stdin: bytes | None = None, **options: Any) -> Said:
    """As `called`, in a loop that runs already."""
    standings: list[Standing] = []

    def watch(standing: Standing) -> bool:
        standings.append(standing)
        return True

    with contextlib.ExitStack() as files:
        given, out, err = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin or b"")
        given.seek(0)
        feed = None if stdin is None else given.fileno()
        calls = Calls(unix(path), watch)
        code = await calls.call(argv, stdin=feed, stdout=out.fileno(), stderr=err.fileno(), **options)
        out.seek(0)
        err.seek(0)
        return Said(code, out.read(), err.read(), standings)


@dataclass
class Proxy:
    """Before a socket. `cuts`: of each connection in turn, after how many bytes down and up it breaks, None: never."""

    path: Path
    cuts: Iterator[tuple[int | None, int | None]]
    down: list[int] = field(default_factory=list)  # bytes that each connection has carried to the client
    up: list[int] = field(default_factory=list)
    carrying: set[asyncio.Task[None]] = field(default_factory=set)

    def cut(self) -> None:
        """Break the connections of now."""
        for task in self.carrying:
            task.cancel()


@contextlib.asynccontextmanager
async def proxy(target: Path, cuts: Iterator[tuple[int | None, int | None]]) -> AsyncIterator[Proxy]:
    """One that listens while the block runs."""
    with tempfile.TemporaryDirectory(prefix="hf-") as folder:
        found = Proxy(Path(folder) / "p", cuts)

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            limit_down, limit_up = next(found.cuts, (None, None))
            there_reader, there_writer = await asyncio.open_unix_connection(str(target))
            number = len(found.down)
            found.down.append(0)
            found.up.append(0)
            both = [
                asyncio.create_task(_carry(there_reader, writer, limit_down, found.down, number)),
                asyncio.create_task(_carry(reader, there_writer, limit_up, found.up, number)),
            ]
            found.carrying.update(both)
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
                found.carrying.difference_update(both)
                writer.close()
                there_writer.close()
                for end in (writer, there_writer):
                    with contextlib.suppress(OSError):
                        await end.wait_closed()

        tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_unix_server(
            lambda reader, writer: tasks.add(asyncio.create_task(carry(reader, writer))), str(found.path)
        )
        try:
            yield found
        finally:
            server.close()
            await asyncio.gather(*tasks)  # whose clients are gone


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None, carried: list[int], number: int
) -> None:
    """Until its end, or the cut: what lies before that byte arrives."""
    while piece := await reader.read(1 << 16):
        if limit is not None:
            piece = piece[: limit - carried[number]]
        writer.write(piece)
        await writer.drain()
        carried[number] += len(piece)
        if limit is not None and carried[number] >= limit:
            return
