"""The link agent: one process a user, which holds the connections of all verbs. Started on demand, gone when idle.

A client says what it wants and keeps its own connection to us open for as long as it uses the link; bytes of commands
go from the client to the master, past us. docs/concepts/link.md has the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast import process
from holdfast.errors import HoldfastError, HostUnreachable, LeaseHeld, UsageError
from holdfast.link.channels import Connection
from holdfast.link.forwards import Forward
from holdfast.link.master import Keepalive, Master, remove_stale
from holdfast.link.mux import End
from holdfast.link.states import PERSON_S, Link, State, refused_since
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
        self.people: dict[
            int, _Client
        ] = {}  # who can ask somebody at a terminal, for as long as they wait for the link
        self.master = Master(target, self._changed, keepalive, can_ask=lambda: bool(self.people))
        self.persist_s = persist_s
        self.users: set[object] = set()  # numbers of clients, and forwards
        self.left_s = time.monotonic()
        self.moved = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self.master.serve())

    def _changed(self, _link: Link) -> None:
        self.moved.set()
        self.moved = asyncio.Event()

    def leave(self, user: object) -> None:
        if user in self.users:
            self.users.discard(user)
            self.left_s = time.monotonic()

    def is_spent(self, now_s: float) -> bool:
        return not self.users and now_s - self.left_s > self.persist_s

    async def until(self, is_over: Callable[[Link], bool], within_s: float) -> None:
        """Until `is_over`, or for so long; the time in which a person is asked does not count."""
        left_s = within_s
        while not is_over(self.master.link) and left_s > 0:
            asking, began_s = self.master.link.asking, time.monotonic()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.moved.wait(), PERSON_S if asking else left_s)
            left_s -= 0 if asking else time.monotonic() - began_s

    async def connection(self, within_s: float) -> Connection:
        """The link as soon as it is up, for connections through it. Raises HostUnreachable."""
        self.master.hurry()
        await self.until(lambda link: link.state in (State.UP, State.NEEDS_AUTHENTICATION), within_s)
        connection, link = self.master.connection, self.master.link
        if link.state is not State.UP or connection is None:
            why = f": {link.why.sentence}" if link.why is not None else ""
            raise HostUnreachable(f"{self.master.target.alias} is {link.state.value}{why}")
        return connection


class _Client:
    """Somebody who talks to us: a verb, or the program that ssh asks with."""

    def __init__(self, connected: socket.socket, number: int) -> None:
        self.number = number
        self._socket = connected
        self._questions: dict[int, asyncio.Future[str | None]] = {}  # put to it, and not answered yet

    async def tell(self, message: Message) -> None:
        with contextlib.suppress(OSError):  # it has left
            await asyncio.get_running_loop().sock_sendall(self._socket, json.dumps(message).encode())

    async def receive(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, process.MESSAGE_BYTES)
        except OSError:
            return b""

    async def answer_to(self, number: int, question: Message) -> str | None:
        """What a person said to it; None when nobody did."""
        answered: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._questions[number] = answered
        try:
            await self.tell({"event": "question", "question": number, **question})
            return await answered
        finally:
            del self._questions[number]

    def answered(self, number: int, text: str | None) -> None:
        """A question that is asked no more is none of ours."""
        question = self._questions.get(number)
        if question is not None and not question.done():
            question.set_result(text)

    def leave(self) -> None:
        """Nobody will answer."""
        for number in self._questions:
            self.answered(number, None)


class Agent:
    """Holds links until nobody needs one."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._links: dict[str, _Held] = {}
        self._forwards: dict[int, Forward] = {}
        self._clients: dict[int, asyncio.Task[None]] = {}
        self._numbers = itertools.count()  # of clients and of questions
        self._used_s = time.monotonic()
        self._ops: dict[str, Callable[[Mapping[str, Any], _Client], Awaitable[Message]]] = {
            "want": self._want,
            "links": self._list,
            "changed": self._tell_change,
            "drop": self._drop,
            "forward": self._forward,
            "forwards": self._list_forwards,
            "unforward": self._unforward,
            "ask": self._ask,
        }

    async def serve(self, listener: socket.socket) -> None:
        """Until idle for long enough."""
        loop = asyncio.get_running_loop()
        for left in folder().glob("?" * 12):  # of an agent that was killed
            await remove_stale(left)
        accepting = loop.create_task(self._accept(listener))
        try:
            while not self._is_idle():
                await asyncio.sleep(_TICK_S)
                await self._drop_spent()
        finally:
            accepting.cancel()
            for task in self._clients.values():
                task.cancel()
            for forward in list(self._forwards.values()):
                await forward.close()
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
            try:
                connected, _ = await loop.sock_accept(listener)
            except OSError:  # no descriptor is left: they wait in the queue
                await asyncio.sleep(_TICK_S)
                continue
            number = next(self._numbers)
            task = self._clients[number] = loop.create_task(self._serve(connected, _Client(connected, number)))
            task.add_done_callback(lambda _, number=number: self._clients.pop(number, None))  # type: ignore[misc]

    async def _serve(self, connected: socket.socket, client: _Client) -> None:
        """Until the client leaves; what it still waits for is given up then."""
        tasks: set[asyncio.Task[None]] = set()
        with connected:
            try:
                while raw := await client.receive():
                    task = asyncio.get_running_loop().create_task(self._answer(raw, client))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            finally:
                for task in tasks:
                    task.cancel()
                await self._forget(client)

    async def _forget(self, client: _Client) -> None:
        client.leave()
        for forward in [one for one in self._forwards.values() if one.owner == client.number]:
            await self._end_forward(forward)
        for held in self._links.values():
            held.leave(client.number)

    async def _answer(self, raw: bytes, client: _Client) -> None:
        try:
            message = json.loads(raw)
            if message["op"] == "answer":
                client.answered(message["question"], message["text"])
                return
            if message["op"] not in self._ops:
                raise UsageError(f"unknown op {message['op']!r}")
            answer = await self._ops[message["op"]](message, client)
        except (ValueError, KeyError, TypeError) as error:
            answer = {"ok": False, "error": f"a message that nobody understands: {error}"}
        except HoldfastError as error:
            answer = {"ok": False, "error": str(error), "hint": error.hint, "exit_code": error.exit_code}
        await client.tell(answer)

    # -- links

    async def _want(self, message: Mapping[str, Any], client: _Client) -> Message:
        """Answers when the link is up, or when it is known why it is not."""
        target = await asyncio.get_running_loop().run_in_executor(
            None, lambda: resolve(str(message["alias"]), config=str(message.get("config", "")))
        )
        held = self._links.get(target.key)
        if held is None:
            keepalive = Keepalive(*message["keepalive"]) if message.get("keepalive") else Keepalive()
            held = self._links[target.key] = _Held(target, keepalive, float(message.get("persist_s", PERSIST_S)))
        held.users.add(client.number)
        if refused_since(held.master.link, float(message["asked_s"])):
            return _told(held)
        if message["asks"]:
            held.people[client.number] = client
        try:
            await self._come_up(held, float(message["within_s"]))
            refused = held.master.link.state is State.NEEDS_AUTHENTICATION
            if refused and message["asks"] and not held.master.asks:
                await self._come_up(held, float(message["within_s"]))  # refused before anybody could be asked
        finally:
            held.people.pop(client.number, None)
        return _told(held)

    async def _come_up(self, held: _Held, within_s: float) -> None:
        held.master.want()
        failures = held.master.link.failures

        def is_decided(link: Link) -> bool:
            return link.state in (State.UP, State.NEEDS_AUTHENTICATION) or link.failures > failures

        await held.until(is_decided, within_s)

    async def _list(self, _message: Mapping[str, Any], _client: _Client) -> Message:
        return {"ok": True, "links": [_told(held) for held in self._links.values()]}

    async def _tell_change(self, message: Mapping[str, Any], _client: _Client) -> Message:
        held, seen = self._held(message["key"]), State(message["state"])
        await held.until(lambda link: link.state is not seen, float(message["within_s"]))
        return {**_told(held), "ok": True}

    async def _drop(self, message: Mapping[str, Any], _client: _Client) -> Message:
        held = self._links.pop(message["key"], None)
        for forward in [one for one in self._forwards.values() if one.key == message["key"]]:
            await self._end_forward(forward)
        if held is not None:
            await _ended(held)
        return {"ok": True}

    def _held(self, key: str) -> _Held:
        if key not in self._links:
            raise HostUnreachable(f"there is no link {key} any more")
        return self._links[key]

    # -- forwards

    async def _forward(self, message: Mapping[str, Any], client: _Client) -> Message:
        held = self._held(message["key"])
        end = End(str(message["host"]), int(message["port"]), str(message["path"]))
        owner = None if message["keep"] else client.number
        alias = held.master.target.alias
        forward = Forward(alias, message["key"], int(message["listen"]), end, held.connection, owner=owner)
        self._forwards[forward.port] = forward
        held.users.add(forward)
        return {"ok": True, **forward.told}

    async def _list_forwards(self, _message: Mapping[str, Any], _client: _Client) -> Message:
        told = [{**one.told, "state": self._held(one.key).master.link.state.value} for one in self._forwards.values()]
        return {"ok": True, "forwards": told}

    async def _unforward(self, message: Mapping[str, Any], _client: _Client) -> Message:
        forward = self._forwards.get(int(message["listen"]))
        if forward is None:
            raise UsageError(f"no forward listens on port {message['listen']}", hint="holdfast forward --ls")
        await self._end_forward(forward)
        return {"ok": True}

    async def _end_forward(self, forward: Forward) -> None:
        await forward.close()
        self._forwards.pop(forward.port, None)
        if forward.key in self._links:
            self._links[forward.key].leave(forward)

    # -- questions

    async def _ask(self, message: Mapping[str, Any], _client: _Client) -> Message:
        """A question of ssh, put to a client that waits for this link at a terminal."""
        held = self._held(message["key"])
        person = next(iter(held.people.values()), None)
        if person is None:
            return {"ok": False}
        held.master.asking(True)
        try:
            question = {"prompt": message["prompt"], "kind": message["kind"]}
            answer = await person.answer_to(next(self._numbers), question)
        finally:
            held.master.asking(False)
        return {"ok": answer is not None, "answer": answer}


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
    await asyncio.wait([held.task])  # who is cancelled here is told, unlike by `await held.task`


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
