"""The link agent: one process a user, which holds the connections of all verbs. Started on demand, gone when idle.

A client says what it wants and keeps its own connection to us open for as long as it uses the link; bytes go from the
client to the master, past us. docs/concepts/architecture.md has the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast import process
from holdfast.errors import HoldfastError, LeaseHeld, UsageError
from holdfast.link.master import Keepalive, Master
from holdfast.link.states import Link, State
from holdfast.link.target import Target, folder, make_folder, resolve

IDLE_S = 600.0  # without a link and without a client
PERSIST_S = 1800.0  # a link that nobody uses any more
_TICK_S = 1.0

Message = dict[str, Any]


def socket_path() -> Path:
    """Where it listens."""
    return folder() / "agent.sock"


class _Held:
    """One link and those who use it."""

    def __init__(self, target: Target, keepalive: Keepalive, persist_s: float) -> None:
        self.master = Master(target, self._changed, keepalive)
        self.persist_s = persist_s
        self.users: set[int] = set()
        self.left_s = time.monotonic()
        self.moved = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self.master.serve())

    def _changed(self, _link: Link) -> None:
        self.moved.set()
        self.moved = asyncio.Event()

    def leave(self, user: int) -> None:
        self.users.discard(user)
        self.left_s = time.monotonic()

    def is_spent(self, now_s: float) -> bool:
        return not self.users and now_s - self.left_s > self.persist_s


class Agent:
    """Holds links until nobody needs one."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._links: dict[str, _Held] = {}
        self._clients: dict[int, asyncio.Task[None]] = {}
        self._used_s = time.monotonic()

    async def serve(self, listener: socket.socket) -> None:
        """Until idle for long enough."""
        loop = asyncio.get_running_loop()
        accepting = loop.create_task(self._accept(listener))
        try:
            while not self._is_idle():
                await asyncio.sleep(_TICK_S)
                await self._drop_spent()
        finally:
            accepting.cancel()
            for task in self._clients.values():
                task.cancel()
            for held in self._links.values():
                await _ended(held)

    def _is_idle(self) -> bool:
        if self._clients or self._links:
            self._used_s = time.monotonic()
        return time.monotonic() - self._used_s > self._idle_s

    async def _drop_spent(self) -> None:
        now_s = time.monotonic()
        for key in [key for key, held in self._links.items() if held.is_spent(now_s)]:
            await _ended(self._links.pop(key))

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            number = client.fileno()
            task = self._clients[number] = loop.create_task(self._client(client, number))
            task.add_done_callback(lambda _, number=number: self._clients.pop(number, None))  # type: ignore[misc]

    async def _client(self, client: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        with client:
            while raw := await _received(client):
                try:
                    answer = await self._asked(json.loads(raw), number)
                except (ValueError, KeyError, TypeError) as error:
                    answer = {"ok": False, "error": f"a message that nobody understands: {error}"}
                except HoldfastError as error:
                    answer = {"ok": False, "error": str(error), "hint": error.hint, "exit_code": error.exit_code}
                with contextlib.suppress(OSError):  # it has left
                    await loop.sock_sendall(client, json.dumps(answer).encode())
        for held in self._links.values():
            if number in held.users:
                held.leave(number)

    async def _asked(self, message: Mapping[str, Any], client: int) -> Message:
        if message["op"] == "want":
            return await self._want(message, client)
        if message["op"] == "links":
            return {"ok": True, "links": [_told(held) for held in self._links.values()]}
        if message["op"] == "drop":
            held = self._links.pop(message["key"], None)
            if held is not None:
                await _ended(held)
            return {"ok": True}
        raise UsageError(f"unknown op {message['op']!r}")

    async def _want(self, message: Mapping[str, Any], client: int) -> Message:
        """Answers when the link is up, or when it is known why it is not."""
        target = await asyncio.get_running_loop().run_in_executor(
            None, lambda: resolve(str(message["alias"]), config=str(message.get("config", "")))
        )
        held = self._links.get(target.key)
        if held is None:
            keepalive = Keepalive(*message["keepalive"]) if message.get("keepalive") else Keepalive()
            held = self._links[target.key] = _Held(target, keepalive, float(message.get("persist_s", PERSIST_S)))
        held.users.add(client)
        held.master.want()
        deadline_s = time.monotonic() + float(message["within_s"])
        failures = held.master.link.failures
        while held.master.link.state is not State.UP:
            refused = held.master.link.state is State.NEEDS_AUTHENTICATION or held.master.link.failures > failures
            left_s = deadline_s - time.monotonic()
            if refused or left_s <= 0:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(held.moved.wait(), left_s)
        return _told(held)


def _told(held: _Held) -> Message:
    link, why = held.master.link, held.master.link.why
    return {
        "ok": link.state is State.UP,
        "alias": held.master.target.alias,
        "key": held.master.target.key,
        "path": str(held.master.path),
        "state": link.state.value,
        "trip_s": link.trip_s,
        "users": len(held.users),
        "why": why.sentence if why is not None else "",
        "hint": why.hint if why is not None else "",
    }


async def _ended(held: _Held) -> None:
    held.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await held.task


async def _received(client: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(client, process.MESSAGE_BYTES)
    except OSError:
        return b""


def main() -> int:
    """Leave an agent behind that listens; returns our exit status. Raises LeaseHeld while another one lives."""
    place = make_folder()
    lock = os.open(place / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LeaseHeld(str(place), int(os.pread(lock, 20, 0) or 0)) from None
    path = socket_path()
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
        listener.setblocking(False)
        if os.fork():
            return 0
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        try:
            asyncio.run(_until_told(listener))
        finally:
            path.unlink(missing_ok=True)
    os.close(lock)
    return 0


async def _until_told(listener: socket.socket) -> None:
    serving = asyncio.get_running_loop().create_task(Agent().serve(listener))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
