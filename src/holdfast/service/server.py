"""The node service: one resident process of one thread, which answers on a unix socket and runs verbs for laptops.

Nobody else can reach the socket (0600, in a folder of ours), and yet what comes is hostile input: sizes and times are
bounded. What takes a disk or a supervisor happens in children, so nothing here ever waits for one. Runs never depend
on this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import h11

from holdfast import __version__, runs
from holdfast.bundle import places
from holdfast.deadline import within
from holdfast.errors import HoldfastError, UsageError
from holdfast.service import answers
from holdfast.service.answers import Answer, nothing_at, refused, told
from holdfast.service.calls import Call, Order, Verb
from holdfast.service.forking import Child
from holdfast.service.frames import UPGRADE, Malformed
from holdfast.service.tasks import stop

PROTOCOL = 1
IDLE_S = 600.0
REQUEST_S = 30.0  # for a request to come whole, or for an answer to be taken
ANSWER_S = 20.0  # for a child that answers
HEAD_BYTES, BODY_BYTES, ANSWER_BYTES = 16 << 10, 1 << 20, 64 << 20
MOST_CALLS, MOST_CONNECTIONS, MOST_CHILDREN = 64, 128, 8
_TICK_S = 1.0
_PIECE_BYTES = 64 << 10
_NUMBER = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Request:
    """One, whole."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    upgrade: str


class Service:
    """Answers until nobody has needed it for `idle_s`."""

    def __init__(self, *, verb: Verb, status: answers.Status, idle_s: float = IDLE_S) -> None:
        self._verb, self._status, self._idle_s = verb, status, idle_s
        self._calls: dict[str, Call] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._children = asyncio.Semaphore(MOST_CHILDREN)
        self._began_s = self._used_s = time.monotonic()
        self._pong = told(_facts())

    async def serve(self, listener: socket.socket) -> None:
        """Until idle for long enough; then calls get SIGHUP, should there be any."""
        server = await asyncio.start_unix_server(self._connected, sock=listener)
        try:
            while not self._is_idle():
                await asyncio.sleep(min(_TICK_S, self._idle_s / 4))
                self._tidy()
        finally:
            server.close()
            await stop(*self._connections)
            for call in self._calls.values():
                call.signal(signal.SIGHUP)

    def _is_idle(self) -> bool:
        if self._connections or self._calls:
            self._used_s = time.monotonic()
        return time.monotonic() - self._used_s > self._idle_s

    def _tidy(self) -> None:
        """A verb that nobody has been with for long hears of it; what nobody asks for is forgotten."""
        for number, call in list(self._calls.items()):
            is_alone = call.alone_s() > self._idle_s
            if call.has_ended and (is_alone or call.was_left):
                self._forget(number)
            elif is_alone and not call.is_abandoned:
                call.abandon()

    def _forget(self, number: str) -> None:
        self._calls.pop(number).close()

    # -- connections

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve_one(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.TimeoutError, Malformed, h11.LocalProtocolError):
                await self._converse(_Http(reader, writer))
        finally:
            writer.close()

    async def _converse(self, http: _Http) -> None:
        """One request after another."""
        while True:
            try:
                request = await http.request()
            except h11.RemoteProtocolError as error:
                await http.say(refused(UsageError(f"this is no request: {error}"), error.error_status_hint))
                return
            if request is None:
                return
            if len(self._connections) > MOST_CONNECTIONS:
                await http.say(refused(HoldfastError(f"more than {MOST_CONNECTIONS} connections"), 503))
                return
            found = self._begun(request) if request.method == "POST" else await self._asked(request)
            if isinstance(found, Answer):
                if not await http.say(found):
                    return
            else:
                number, received = found
                await self._attach(number, received, http)
                return

    async def _attach(self, number: str, received: int, http: _Http) -> None:
        call = self._calls[number]
        await call.attach(http.reader, http.writer, await http.switch(), received)
        if call.is_over and number in self._calls:
            self._forget(number)

    # -- requests

    async def _asked(self, request: Request) -> Answer | tuple[str, int]:
        if request.method != "GET":
            return refused(UsageError(f"{request.method[:20]} is not understood", hint="GET or POST"), 405)
        if request.path == "/ping":
            return self._pong
        if request.path == "/runs" or request.path.startswith("/runs/"):
            return await self._from_child(request)
        if request.path.startswith("/calls/"):
            return self._known(request)
        return nothing_at(request.path)

    def _begun(self, request: Request) -> Answer | tuple[str, int]:
        """Begin a call, unless it is one that has begun already and whose answer was lost."""
        if request.path != "/calls":
            return nothing_at(request.path)
        try:
            body = _object(request.body)
            number, age_s = body.get("call"), body.get("age_s", 0)
            if not isinstance(number, str) or not _NUMBER.fullmatch(number):
                raise UsageError("call is not a number of 32 hexadecimal digits")
            if type(age_s) not in (int, float):
                raise UsageError("age_s is not a time in seconds")
            order = Order.of(body)
        except UsageError as error:
            return refused(error)
        if request.upgrade != UPGRADE:
            return refused(UsageError(f"a call is an upgrade to {UPGRADE}"), 426)
        if number not in self._calls:
            if age_s > time.monotonic() - self._began_s:
                return refused(HoldfastError("this service began after the call was asked for"), 410)
            if len(self._calls) >= MOST_CALLS:
                return refused(HoldfastError(f"{MOST_CALLS} verbs run here already", hint="try again later"), 503)
            try:
                self._calls[number] = Call(order, self._verb)
            except OSError as error:
                return refused(HoldfastError(f"no verb can be started: {error.strerror}"), 503)
        return (number, 0) if self._calls[number].has_frames_after(0) else _are_gone(0)

    def _known(self, request: Request) -> Answer | tuple[str, int]:
        number, out = request.path.removeprefix("/calls/"), request.query.get("out", "0")
        call = self._calls.get(number)
        if call is None:
            return refused(UsageError(f"there is no call {number[:40]!r} here"), 404)
        if request.upgrade != UPGRADE:
            return refused(UsageError(f"a call is an upgrade to {UPGRADE}"), 426)
        if not out.isdecimal() or len(out) > 18:
            return refused(UsageError(f"out={out[:20]!r} is not a number of frames"))
        return (number, int(out)) if call.has_frames_after(int(out)) else _are_gone(int(out))

    async def _from_child(self, request: Request) -> Answer:
        """From disks and supervisors."""
        async with self._children:
            try:
                child, ours = self._asking(request)
            except OSError as error:
                return refused(HoldfastError(f"{request.path} cannot be answered: {error.strerror}"), 503)
            try:
                return Answer.unpacked(await within(_all(ours), ANSWER_S))
            except asyncio.TimeoutError:
                return refused(HoldfastError(f"{request.path} took longer than {ANSWER_S:g} s"), 504)
            except (ValueError, KeyError):
                child.signal(signal.SIGKILL)
                return refused(HoldfastError(f"{request.path} was not answered: status {await child.ended}"), 500)
            finally:
                os.close(ours)
                child.signal(signal.SIGKILL)

    def _asking(self, request: Request) -> tuple[Child, int]:
        """A child, and the descriptor that its answer comes from. Raises OSError, and then there is neither."""
        with open(os.devnull, "r+b", buffering=0) as nothing:  # noqa: PTH123
            ours, its = os.pipe()
            try:
                return Child(
                    lambda: answers.hand_over(answers.answer(request.path, request.query, self._status)),
                    (nothing.fileno(), its, nothing.fileno()),
                ), ours
            except BaseException:
                os.close(ours)
                raise
            finally:
                os.close(its)


def _facts() -> dict[str, Any]:
    """Who answers: the same for as long as the process lives."""
    return {
        "ok": True,
        "pid": os.getpid(),
        "version": __version__,
        "bundle": places.own(),
        "home": os.path.realpath(runs.home()),
        "protocol": PROTOCOL,
    }


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise UsageError("the body is not a JSON object")
    return body


def _are_gone(received: int) -> Answer:
    return refused(HoldfastError(f"the frames after the first {received} are not here"), 410)


async def _all(pipe: int) -> bytes:
    """What comes through it to its end. Raises ValueError past `ANSWER_BYTES`."""
    loop, ready, parts = asyncio.get_running_loop(), asyncio.Event(), bytearray()
    os.set_blocking(pipe, False)
    loop.add_reader(pipe, ready.set)
    try:
        while len(parts) <= ANSWER_BYTES:
            await ready.wait()
            ready.clear()
            try:
                part = os.read(pipe, _PIECE_BYTES)
            except BlockingIOError:  # told twice of the same bytes
                continue
            if not part:
                return bytes(parts)
            parts += part
    finally:
        loop.remove_reader(pipe)
    raise ValueError("too long")


class _Http:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)

    async def request(self) -> Request | None:
        """The next one, which may be long in coming but not in pieces; None when the client has left.

        Raises h11.RemoteProtocolError, TimeoutError, OSError.
        """
        if self._protocol.trailing_data == (b"", False):
            await self._receive()
        return await self._whole(time.monotonic() + REQUEST_S)

    async def say(self, answer: Answer) -> bool:
        """Whether another request may follow. Raises OSError, TimeoutError."""
        if self._protocol.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        headers = [*answer.headers.items(), ("Content-Length", str(len(answer.body)))]
        parts: list[h11.Event] = [h11.Response(status_code=answer.code, headers=headers), h11.Data(data=answer.body)]
        self.writer.writelines(self._protocol.send(part) or b"" for part in [*parts, h11.EndOfMessage()])
        await within(self.writer.drain(), REQUEST_S)
        if {self._protocol.our_state, self._protocol.their_state} != {h11.DONE}:
            return False
        self._protocol.start_next_cycle()
        return True

    async def switch(self) -> bytes:
        """Say that frames follow; what has come of them already."""
        headers = [("Upgrade", UPGRADE), ("Connection", "Upgrade")]
        self.writer.write(self._protocol.send(h11.InformationalResponse(status_code=101, headers=headers)) or b"")
        return self._protocol.trailing_data[0]

    async def _receive(self) -> None:
        self._protocol.receive_data(await self.reader.read(_PIECE_BYTES))

    async def _whole(self, until_s: float) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                await within(self._receive(), until_s - time.monotonic())
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > BODY_BYTES:
                    raise h11.RemoteProtocolError(f"a body of more than {BODY_BYTES} bytes", 413)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _request(head, bytes(body))
            else:
                return None


def _request(head: h11.Request, body: bytes) -> Request:
    try:
        where = urlsplit(head.target.decode("ascii"))
    except ValueError as error:
        raise h11.RemoteProtocolError(f"no address: {error}") from error
    upgrade = next((value for name, value in head.headers if name == b"upgrade"), b"")
    return Request(
        head.method.decode("ascii"),
        unquote(where.path),
        dict(parse_qsl(where.query)),
        body,
        upgrade.decode("latin-1").lower(),
    )
