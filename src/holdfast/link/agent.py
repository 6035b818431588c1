"""The link agent: one process a user, which holds the connections of all verbs. Started on demand, gone when idle.

A client says what it wants and keeps its own connection to us open for as long as it uses the link; bytes of commands
go from the client to the master, past us. docs/concepts/link.md has the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast import fsio
from holdfast.errors import HoldfastError, HostUnreachable, LeaseHeld, UsageError
from holdfast.link import hosts, leftovers, messages, routes, wire
from holdfast.link.forwards import Forward
from holdfast.link.hosts import Chosen
from holdfast.link.mux import End
from holdfast.link.place import Place
from holdfast.link.states import State, refused_since
from holdfast.link.target import Target, folder, make_folder, resolve
from holdfast.link.wire import Malformed

PROTOCOL = 3  # of the messages: one more whenever an agent and a client of before would misunderstand each other
IDLE_S = 600.0  # without a link and without a client
_TICK_S = 1.0

Message = dict[str, Any]


def socket_path() -> Path:
    """Where it listens."""
    return folder() / "agent.sock"


class Client:
    """Somebody who talks to us: a verb, or the program that ssh asks with."""

    def __init__(self, connected: socket.socket, number: int) -> None:
        self.number = number
        self._socket = connected
        self._sending = asyncio.Lock()  # a message is whole before the next one begins
        self._questions: dict[int, asyncio.Future[str | None]] = {}  # put to it, and not answered yet

    async def tell(self, message: Message) -> None:
        async with self._sending:
            with contextlib.suppress(OSError):  # it has left
                await asyncio.get_running_loop().sock_sendall(self._socket, messages.encoded(message))

    async def receive(self) -> bytes:
        """The next message; b"" when it has left, or is none of ours."""
        try:
            return await wire.received(self._socket)
        except (OSError, Malformed):
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
        self._places: dict[str, Place] = {}
        self._forwards: dict[int, Forward] = {}
        self._clients: dict[int, asyncio.Task[None]] = {}
        self._numbers = itertools.count()  # of clients, of questions and of sockets
        self._used_s = time.monotonic()
        self._has_moved = False
        self._ops: dict[str, Callable[[Mapping[str, Any], Client], Awaitable[Message]]] = {
            "want": self._want,
            "links": self._list,
            "changed": self._tell_change,
            "drop": self._drop,
            "share": self._share,
            "forward": self._forward,
            "forwards": self._list_forwards,
            "unforward": self._unforward,
            "ask": self._ask,
        }

    async def serve(self, listener: socket.socket) -> None:
        """Until idle for long enough, or until nobody finds us any more: others may tidy /tmp."""
        loop, path = asyncio.get_running_loop(), Path(listener.getsockname())
        ours = path.stat()
        await leftovers.end_masters(folder())
        accepting = loop.create_task(self._accept(listener))
        moves = routes.listen()
        if moves is not None:
            loop.add_reader(moves, self._move, moves)
        try:
            await leftovers.sweep()
            while not self._is_idle() and _is_at(path, ours):
                await asyncio.sleep(_TICK_S)
                has_moved, self._has_moved = self._has_moved, False
                for place in list(self._places.values()):
                    if has_moved:
                        place.uproot()
                    place.tick(time.monotonic())
                await self._drop_spent()
        finally:
            if moves is not None:
                loop.remove_reader(moves)
                moves.close()
            leaving = [accepting, *self._clients.values()]
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)  # each ends what it alone has used
            await asyncio.gather(*[self._end_place(key) for key in list(self._places)])

    def _move(self, moves: socket.socket) -> None:
        """This machine may be in another network. That is told in many parts, and by some machines all day."""
        routes.heard(moves)
        self._has_moved = True

    def _is_idle(self) -> bool:
        if self._clients or self._places:
            self._used_s = time.monotonic()
        return time.monotonic() - self._used_s > self._idle_s

    async def _drop_spent(self) -> None:
        now_s = time.monotonic()
        spent = [key for key, place in self._places.items() if place.is_spent(now_s)]
        await asyncio.gather(*[self._end_place(key) for key in spent])

    async def _end_place(self, key: str) -> None:
        place = self._places.pop(key, None)
        for forward in [one for one in self._forwards.values() if one.key == key]:
            await self._end_forward(forward)
        if place is not None:
            await place.end()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, _ = await loop.sock_accept(listener)
            except OSError:  # no descriptor is left: they wait in the queue
                await asyncio.sleep(_TICK_S)
                continue
            number = next(self._numbers)
            task = self._clients[number] = loop.create_task(self._serve(connected, Client(connected, number)))
            task.add_done_callback(lambda _, number=number: self._clients.pop(number, None))  # type: ignore[misc]

    async def _serve(self, connected: socket.socket, client: Client) -> None:
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

    async def _forget(self, client: Client) -> None:
        client.leave()
        for forward in [one for one in self._forwards.values() if one.owner == client.number]:
            await self._end_forward(forward)
        for place in self._places.values():
            place.leave(client.number)
        await self._drop_spent()  # what is kept for no time at all

    async def _answer(self, raw: bytes, client: Client) -> None:
        try:
            message = messages.decoded(raw)
            if message["op"] == "answer":
                client.answered(message["question"], message["text"])
                return
            if message["op"] not in self._ops:
                raise UsageError(f"unknown op {message['op']!r}")
            answer = await self._ops[message["op"]](message, client)
        except (ValueError, KeyError, TypeError) as error:
            answer = {"ok": False, "error": f"a message that nobody understands: {error}"}
        except OSError as error:  # no descriptor is left, no memory for a process
            answer = {"ok": False, "error": f"the link agent cannot do that: {error}"}
        except HoldfastError as error:
            answer = {"ok": False, "error": str(error), "hint": error.hint, "exit_code": error.exit_code}
        await client.tell(answer)

    # -- links

    async def _want(self, message: Mapping[str, Any], client: Client) -> Message:
        """Answers when the link is up, or when it is known why it is not."""
        _ask_for_keys_at(str(message.get("auth_sock", "")))
        target = await asyncio.get_running_loop().run_in_executor(
            None, lambda: resolve(str(message["alias"]), config=str(message.get("config", "")))
        )
        chosen = Chosen.decoded(message["chosen"])
        if target.is_relayed:
            chosen = hosts.outlasting(chosen)
        place = self._place(target, client.number, chosen)
        place.want(client.number, chosen)
        try:
            if not refused_since(place.link, float(message["asked_s"])):
                await self._come_up(place, chosen, message, client)
        finally:
            place.take(client.number)
        return place.told()

    async def _come_up(self, place: Place, chosen: Chosen, message: Mapping[str, Any], client: Client) -> None:
        asks, within_s = bool(message["asks"]), hosts.time_s(message["within_s"])
        if asks:
            place.people[client.number] = client
        try:
            await place.come_up(chosen, within_s)
            if asks and place.link.state is State.NEEDS_AUTHENTICATION and not place.current.master.asks:
                await place.come_up(chosen, within_s)  # refused before anybody could be asked
        finally:
            place.people.pop(client.number, None)

    async def _list(self, _message: Mapping[str, Any], _client: Client) -> Message:
        return {"ok": True, "protocol": PROTOCOL, "links": [place.told() for place in self._places.values()]}

    async def _tell_change(self, message: Mapping[str, Any], _client: Client) -> Message:
        place, seen = self._at(message["key"]), State(message["state"])
        await place.until(lambda link: link.state is not seen, hosts.time_s(message["within_s"]))
        return {**place.told(), "ok": True}

    async def _drop(self, message: Mapping[str, Any], _client: Client) -> Message:
        await self._end_place(message["key"])
        return {"ok": True}

    async def _share(self, message: Mapping[str, Any], _client: Client) -> Message:
        place = self._at(message["key"])
        await place.share(str(message["command"]))
        return place.told()

    def _at(self, key: str) -> Place:
        if key not in self._places:
            raise HostUnreachable(f"there is no link {key} any more")
        return self._places[key]

    def _place(self, target: Target, client: int, chosen: Chosen) -> Place:
        """Shared by all who want it, or, where the host is not to be shared, of this client alone."""
        key = target.key if chosen.multiplex else f"{target.key}.{client}"
        if key not in self._places:
            self._places[key] = Place(target, key, chosen, self._numbers)
        return self._places[key]

    # -- forwards

    async def _forward(self, message: Mapping[str, Any], client: Client) -> Message:
        place = self._at(message["key"])
        end = End(str(message["host"]), int(message["port"]), str(message["path"]))
        owner = None if message["keep"] else client.number
        alias = place.target.alias
        forward = Forward(alias, message["key"], int(message["listen"]), end, place.connection, owner=owner)
        self._forwards[forward.port] = forward
        place.stay(forward)
        return {"ok": True, **forward.told}

    async def _list_forwards(self, _message: Mapping[str, Any], _client: Client) -> Message:
        states = {key: place.link.state for key, place in self._places.items()}
        told = [{**one.told, "state": states.get(one.key, State.DOWN).value} for one in self._forwards.values()]
        return {"ok": True, "forwards": told}

    async def _unforward(self, message: Mapping[str, Any], _client: Client) -> Message:
        forward = self._forwards.get(int(message["listen"]))
        if forward is None:
            raise UsageError(f"no forward listens on port {message['listen']}", hint="holdfast forward --ls")
        await self._end_forward(forward)
        return {"ok": True}

    async def _end_forward(self, forward: Forward) -> None:
        await forward.close()
        self._forwards.pop(forward.port, None)
        if forward.key in self._places:
            self._places[forward.key].leave(forward)

    # -- questions

    async def _ask(self, message: Mapping[str, Any], _client: Client) -> Message:
        """A question of ssh, put to a client that waits for this link at a terminal."""
        place = self._at(message["key"])
        person = next(iter(place.people.values()), None)
        if person is None:
            return {"ok": False}
        place.asking(True)
        try:
            question = {"prompt": message["prompt"], "kind": message["kind"]}
            answer = await person.answer_to(next(self._numbers), question)
        finally:
            place.asking(False)
        return {"ok": answer is not None, "answer": answer}


def main() -> int:
    """Leave an agent behind that listens; returns our exit status. Raises LeaseHeld while another one lives."""
    place = make_folder()
    try:
        lock = fsio.lock_file(place / "agent.lock")
    except BlockingIOError:
        raise LeaseHeld(str(place), fsio.signer(place / "agent.lock")) from None
    lock.sign()
    path = socket_path()
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
        listener.setblocking(False)
        if os.fork():
            return 0
        lock.sign()
        ours = path.stat()
        try:
            asyncio.run(_until_told(listener))
        finally:
            is_there = _is_at(path, ours)
            if is_there:
                path.unlink()
        log = place / "agent.log"  # where something is in it, nobody expected that
        if is_there and not (log.exists() and log.stat().st_size):
            leftovers.remove(place)
    lock.close()
    return 0


def _ask_for_keys_at(path: str) -> None:
    """Every ssh of ours asks the ssh-agent of who came last, if one is there: our starter's may go at its logout."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.setblocking(False)
        probe.connect(path)
        os.environ["SSH_AUTH_SOCK"] = path


def _is_at(path: Path, ours: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), ours)
    except OSError:
        return False


async def _until_told(listener: socket.socket) -> None:
    serving = asyncio.get_running_loop().create_task(Agent().serve(listener))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
