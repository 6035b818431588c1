"""`holdfast node channels`: on its standard streams, what sshd would do for channels to unix sockets and for commands.

For hosts whose sshd opens no such channels, or one session at a time. It ends with its streams; commands that were
started here go on, as they do under sshd.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import socket
import subprocess
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any

from holdfast.errors import HostUnreachable
from holdfast.link.channels import GREETING, STREAMLOCAL, Channel, Connection
from holdfast.link.descriptors import Sink, read, readable
from holdfast.link.forwards import exchange
from holdfast.link.wire import Reader
from holdfast.process import callers

_PIECE_BYTES = 256 << 10


def main() -> int:
    """Serve until the streams end."""
    asyncio.run(_serve())
    return 0


async def _serve() -> None:
    ours, streams = socket.socketpair()
    ours.setblocking(False)
    os.write(1, GREETING)
    for copy in (_from_stdin, _to_stdout):
        threading.Thread(target=copy, args=(streams,), daemon=True).start()
    serving = _Serving()
    await Connection(ours, serving.accept).ended()


def _from_stdin(streams: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := os.read(0, _PIECE_BYTES):
            streams.sendall(piece)
    streams.shutdown(socket.SHUT_WR)


def _to_stdout(streams: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := streams.recv(_PIECE_BYTES):
            left = memoryview(piece)
            while left:
                left = left[os.write(1, left) :]


class _Serving:
    """What is asked for, each in a task of its own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, channel: Channel, kind: str, more: Reader) -> None:
        if kind == STREAMLOCAL:
            self._do(_to_socket(channel, os.fsdecode(more.string())))
        elif kind == "session":
            session = _Session(channel)

            def requested(request: str, said: Reader) -> bool:
                if request == "exec" and session.child is None:
                    self._do(session.run(os.fsdecode(said.string())))
                    return True
                return request == "signal" and session.signal(said.text())

            channel.requested = requested
            channel.confirm()
        else:
            channel.refuse(f"a channel of kind {kind} is not served here")

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _to_socket(channel: Channel, path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as here:
        here.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(here, path)
        except OSError as error:
            channel.refuse(f"{path}: {error.strerror}")
            return
        with contextlib.suppress(OSError, HostUnreachable):  # either end has left
            channel.confirm()
            await exchange(here, channel)


class _Session:
    """One command in the user's shell."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.child: subprocess.Popen[bytes] | None = None

    async def run(self, command: str) -> None:
        """To its end, or until nobody wants what it says."""
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, HostUnreachable):
            held.callback(self._channel.give_up)
            child = self.child = subprocess.Popen(
                [pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh", "-c", command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                cwd=Path.home(), env=callers(os.environ), start_new_session=True,
            )  # fmt: skip
            assert child.stdin and child.stdout and child.stderr
            tasks = [
                asyncio.get_running_loop().create_task(each)
                for each in (self._tell(child.stdout), self._tell(child.stderr, stderr=True), self._feed(child.stdin))
            ]
            with contextlib.suppress(OSError, HostUnreachable):  # nobody wants more of it: a signal tells the command
                await asyncio.gather(*tasks[:2])
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._channel.exited(await _ended(child))

    def signal(self, name: str) -> bool:
        """To all of its process group."""
        number = getattr(signal, f"SIG{name}", None)
        if self.child is None or not isinstance(number, signal.Signals):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, number)
        return True

    async def _tell(self, stream: IO[bytes], *, stderr: bool = False) -> None:
        with stream:  # what is written after that is told by a signal
            while piece := await read(stream.fileno(), _PIECE_BYTES):
                await self._channel.write(piece, stderr=stderr)

    async def _feed(self, stream: IO[bytes]) -> None:
        with stream, contextlib.suppress(OSError, HostUnreachable):  # the command wants no more of it
            sink = Sink(stream.fileno())
            while piece := await self._channel.read():
                sink.put(piece)
                await sink.flush()


async def _ended(child: subprocess.Popen[bytes]) -> int:
    descriptor = os.pidfd_open(child.pid)
    try:
        await readable(descriptor)
    finally:
        os.close(descriptor)
    return child.wait()
