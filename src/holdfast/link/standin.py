"""What stands in for a master where the server allows too little: one session, or no channels to unix sockets.

All that clients ask of a master's control socket they ask here, and it goes over one session, at whose other end
`holdfast node channels` opens channels and starts commands as the server would have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

from holdfast.errors import HostUnreachable
from holdfast.link import mux
from holdfast.link.channels import GREETING, LAST_WORDS_S, Channel, Connection, session_when_free
from holdfast.link.descriptors import Sink, read
from holdfast.link.mux import Control, MasterGone, Refused
from holdfast.link.switch import Switch
from holdfast.link.wire import Malformed, Reader, string, u32

SLOT_S = 10.0  # for the server to have a session free
BEGIN_S = 30.0  # for a Python there to begin
_NOISE_BYTES = 64 << 10  # that a shell may say before
_SAID_BYTES = 2000  # of what is said on standard error, kept for whoever asks why
_PIECE_BYTES = 256 << 10
_FULL_S = 0.1
_SESSION = 1  # each passenger has a connection of its own, and on it one session


class Standin:
    """A control socket at `path`, for as long as its one session lasts."""

    def __init__(self, path: Path, under: Connection, session: Channel, came: bytes) -> None:
        """session: of `under`, with `holdfast node channels` in it; came: what was read of it. Raises OSError."""
        self.path, self._under = path, under
        self._switch = Switch(session, came)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        before = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(before)
        self._listener.listen(128)
        under.steady = session
        self._own = self._client_of_our_own()
        self._running = asyncio.get_running_loop().create_task(self._run())

    @property
    def is_open(self) -> bool:
        """Whether it still takes clients."""
        return not self._running.done()

    async def close(self) -> None:
        """Hang up all clients, and end the session."""
        self._running.cancel()
        await asyncio.wait([self._running])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        work = {loop.create_task(self._switch.run()), loop.create_task(self._accept())}
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._listener.close()
            self.path.unlink(missing_ok=True)
            if self._under.steady is not None:
                self._under.steady.give_up()
                self._under.steady = None
            for task in (*work, *self._tasks):
                task.cancel()
            await self._own.close()

    def _client_of_our_own(self) -> Connection:
        """For the sessions of passengers."""
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)
        self._do(theirs)
        return Connection(ours)

    def _do(self, connected: socket.socket, control: Control | None = None) -> None:
        work = self._proxy(connected) if control is None else self._serve(control)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            try:
                connected, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError:  # no descriptor is left: they wait in the queue
                await asyncio.sleep(_FULL_S)
                continue
            self._do(connected, Control(str(self.path), connected))

    async def _proxy(self, connected: socket.socket) -> None:
        await self._switch.serve(*await asyncio.open_connection(sock=connected))

    async def _serve(self, control: Control) -> None:
        """One client, as a master does (PROTOCOL.mux)."""
        try:
            await control.send(u32(mux.HELLO, mux.VERSION))
            await control.read()
            while True:
                kind, body = await control.read()
                number = body.u32()
                if kind == mux.PROXY:
                    await control.send(u32(mux.PROXY_ON, number))
                    await self._proxy(socket.socket(fileno=control.socket.detach()))
                    return
                if kind == mux.NEW_SESSION:
                    await self._carry(control, number, body)
                    return
                if kind == mux.ALIVE_CHECK:
                    await control.send(u32(mux.ALIVE, number, os.getpid()))
                else:
                    await control.send(
                        u32(mux.FAILURE, number) + string("one channel to that host carries no such thing")
                    )
        except (OSError, Malformed):
            return  # it has left
        finally:
            control.close()

    # -- passengers

    async def _carry(self, control: Control, number: int, body: Reader) -> None:
        """One command, its streams three descriptors of the client."""
        body.string()
        wants_terminal, _, _, is_subsystem, _ = (body.u32() for _ in range(5))
        body.string()  # the kind of terminal
        command = body.string().decode(errors="surrogateescape")
        with contextlib.ExitStack() as held:
            stdio = []
            for _ in range(3):
                stdio.append(await control.receive_descriptor())
                held.callback(os.close, stdio[-1])
            try:
                if wants_terminal or is_subsystem or not command:
                    raise Refused("one channel to that host carries no terminal")
                channel = await self._own.session()
                held.callback(channel.give_up)
                await channel.exec(command)
            except (MasterGone, Refused) as error:
                await control.send(u32(mux.FAILURE, number) + string(str(error)))
                return
            await control.send(u32(mux.SESSION_OPENED, number, _SESSION))
            work = {
                asyncio.get_running_loop().create_task(each)
                for each in (_ride(channel, stdio), _hung_up(control))
            }  # fmt: skip
            try:
                done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                status = max(task.result() for task in done)
                if status >= 0:
                    await control.send(u32(mux.EXIT, _SESSION, status))
            finally:
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)


async def begin(under: Connection, command: str, path: Path) -> Standin:
    """Start `command` in a session of its own. Raises HostUnreachable, with the last line it said."""
    session = await session_when_free(under, SLOT_S)
    try:
        await session.exec(command)
        return Standin(path, under, session, await _greeted(session))
    except BaseException as error:
        session.give_up()
        if isinstance(error, OSError):
            raise HostUnreachable(f"{path}: {error.strerror}") from error
        raise


async def _greeted(session: Channel) -> bytes:
    """What came after the greeting. Raises HostUnreachable."""
    came, said = bytearray(), bytearray()
    waiting = asyncio.get_running_loop().create_task(_until_greeting(session, came))
    hearing = asyncio.get_running_loop().create_task(_hear(session, said))  # to the end of the session
    await asyncio.wait([waiting], timeout=BEGIN_S)
    at = came.find(GREETING)
    if at >= 0:
        return bytes(came[at + len(GREETING) :])
    await asyncio.wait([hearing], timeout=LAST_WORDS_S)
    waiting.cancel()
    hearing.cancel()
    lines = bytes(said or came).decode(errors="replace").strip().splitlines()
    raise HostUnreachable(f"holdfast did not start there: {lines[-1][:300] if lines else 'it said nothing'}")


async def _until_greeting(session: Channel, came: bytearray) -> None:
    with contextlib.suppress(MasterGone):
        while GREETING not in came and len(came) < _NOISE_BYTES and (piece := await session.read()):
            came += piece


async def _hear(session: Channel, said: bytearray) -> None:
    """Standard error, of which the end is kept: what nobody takes would keep the other end waiting."""
    with contextlib.suppress(MasterGone):
        while piece := await session.read(stderr=True):
            said += piece
            del said[:-_SAID_BYTES]


async def _ride(channel: Channel, stdio: list[int]) -> int:
    """The exit status of the command, when all it wrote is written; -1 when nobody can tell."""
    feeding = asyncio.get_running_loop().create_task(_feed(channel, stdio[0]))
    try:
        await asyncio.gather(_empty(channel, stdio[1], stderr=False), _empty(channel, stdio[2], stderr=True))
        exit_ = await channel.wait()
    except MasterGone:
        return -1
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    if exit_.status is None and not exit_.signal:
        return -1
    return mux.BY_SIGNAL if exit_.status is None else exit_.status


async def _feed(channel: Channel, descriptor: int) -> None:
    with contextlib.suppress(OSError, MasterGone):  # it wants no more of it, or there is no more
        while piece := await read(descriptor, _PIECE_BYTES):
            await channel.write(piece)
    with contextlib.suppress(MasterGone):
        await channel.end()


async def _empty(channel: Channel, descriptor: int, *, stderr: bool) -> None:
    """What comes, to where it goes; where that takes no more, the command is told by its closed channel."""
    sink = Sink(descriptor)
    try:
        while piece := await channel.read(stderr=stderr):
            sink.put(piece)
            await sink.flush()
    except OSError:
        channel.give_up()


async def _hung_up(control: Control) -> int:
    """-1 when the client has."""
    with contextlib.suppress(OSError):
        while await asyncio.get_running_loop().sock_recv(control.socket, 1 << 10):
            pass
    return -1
