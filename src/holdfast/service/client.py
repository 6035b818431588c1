"""A laptop's way to a node's service: questions with one answer, and verbs that run there as if they ran here.

A verb's call outlives its connection: the frames that each end keeps let both go on exactly where they were. It is lost
only with the service itself, and then nobody guesses: what became of the verb is not known, and it is not begun twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

import h11

from holdfast.deadline import within
from holdfast.errors import HoldfastError, HostUnreachable, received
from holdfast.service.frames import UPGRADE
from holdfast.service.riding import Cut, Riding
from holdfast.service.streams import Connect, Stream
from holdfast.service.tasks import stop

CONNECT_S = 30.0
ANSWER_S = 30.0
_ANSWER_BYTES = 64 << 20
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0
_LEAVE_S = 1.0  # for the verb to be told that its caller goes


class NoService(HostUnreachable):
    """The machine was reached, and no service listens there."""


class CallLost(HostUnreachable):
    """The service that had the verb is gone, and nobody knows what became of it."""

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(
            f"the node's service ended while `{argv[0]}` ran there: how that went on is not known",
            hint="look at what it was about before you do it again",
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """Of the connection below a call. `away_s`: seconds since it has gone, None when it is there."""

    away_s: float | None
    why: str = ""


Watch: TypeAlias = Callable[[Standing], bool]  # told before each new attempt, and when it is there; False gives up


def _for_ever(_standing: Standing) -> bool:
    return True


class Calls:
    """What can be asked of one service. Use on one event loop, as a context manager or with `close` at the end."""

    def __init__(self, connect: Connect, watch: Watch = _for_ever) -> None:
        self._connect, self._watch = connect, watch
        self._kept: _Http | None = None  # a connection between two questions

    async def __aenter__(self) -> Calls:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        if self._kept is not None:
            await self._kept.stream.close()
            self._kept = None

    async def get(self, path: str, *, within_s: float = ANSWER_S) -> dict[str, Any]:
        """The JSON object that answers a question such as "/runs".

        Raises NoService, HostUnreachable when there is no answer in time, what the service refused as the error it is.
        """
        _, body = await self.read(path, within_s=within_s)
        return _object(body)

    async def read(self, path: str, *, within_s: float = ANSWER_S) -> tuple[dict[str, str], bytes]:
        """Headers, their names in small letters, and body of an answer. Raises as `get` does."""
        try:
            return await within(self._read(path), within_s)
        except asyncio.TimeoutError:
            raise HostUnreachable(f"no answer within {within_s:g} s to {path}") from None
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise NoService(f"no node service listens there: {error}") from error
        except (OSError, Cut) as error:
            raise HostUnreachable(f"the connection ended before {path} was answered: {error}") from error

    async def call(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: int | None = None,
        stdout: int = 1,
        stderr: int = 2,
        columns: int | None = None,
        signals: bool = False,
    ) -> int:
        """Run a verb there; its exit status, 128 + N when signal N ended it.

        stdin, stdout, stderr: descriptors here; None is an empty stdin. columns: of the terminal, None without one.
        signals: pass on Ctrl-C, and the size of the terminal when it changes; a second Ctrl-C leaves, by
        KeyboardInterrupt.

        Raises NoService, CallLost, HostUnreachable when `watch` gives up, what the service refused as the error it is,
        and OSError of the caller's own streams (BrokenPipeError when the reader of stdout has left).
        """
        order = {
            "call": secrets.token_hex(16),
            "argv": list(argv),
            "cwd": cwd,
            "env": dict(env or {}),
            "columns": columns,
            "terminals": [n for n, one in enumerate((stdin, stdout, stderr)) if one is not None and os.isatty(one)],
        }
        riding = Riding(stdin, stdout, stderr, columns)
        feeding = asyncio.create_task(riding.feed())
        carrying = asyncio.create_task(self._carry(order, riding))
        leaving = asyncio.create_task(riding.left.wait())
        try:
            with _passing_on(riding, stdout) if signals else contextlib.nullcontext():
                await asyncio.wait({carrying, leaving}, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait({carrying}, timeout=_LEAVE_S)
        finally:
            await stop(feeding, carrying, leaving)
        if not carrying.cancelled():
            carrying.result()
        if riding.status is None:
            raise KeyboardInterrupt
        return riding.status if riding.status >= 0 else 128 - riding.status

    async def _carry(self, order: dict[str, Any], riding: Riding) -> None:
        """Over one connection after another, until the verb has ended or the caller leaves."""
        gone_s: float | None = None
        wait_s, progress = _FIRST_WAIT_S, 0
        while riding.status is None and not riding.left.is_set():
            try:
                stream, first = await self._joined(order, riding)
                self._watch(Standing(None))
                gone_s = None
                try:
                    await riding.ride(stream, first)
                finally:
                    await stream.close()
            except Cut as error:  # noqa: PERF203 - a cut is what the loop is about
                gone_s = time.monotonic() if gone_s is None else gone_s
                if not self._watch(Standing(time.monotonic() - gone_s, str(error))):
                    raise HostUnreachable(f"the connection to the node is gone: {error}") from error
                wait_s = _FIRST_WAIT_S if riding.progress > progress else min(_LONGEST_WAIT_S, 2 * wait_s)
                progress = riding.progress
                await asyncio.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311

    async def _joined(self, order: dict[str, Any], riding: Riding) -> tuple[Stream, bytes]:
        """A connection on which frames follow, and what of them has come already.

        Raises Cut, NoService, CallLost, and what the service refused as the error it is.
        """
        try:
            http = await self._fresh()
        except (ConnectionRefusedError, FileNotFoundError) as error:
            if riding.asked_s is None:
                raise NoService(f"no node service listens there: {error}") from error
            raise CallLost(order["argv"]) from error
        try:
            answer = await within(http.ask(*_begin_or_go_on(order, riding), upgrade=True), ANSWER_S)
            if answer.code != 101:
                raise CallLost(order["argv"]) if answer.code in (404, 410) else received(_object(answer.body))
        except BaseException as error:
            await http.stream.close()
            if isinstance(error, asyncio.TimeoutError):
                raise Cut(f"the service did not answer within {ANSWER_S:g} s") from None
            raise
        riding.is_known = True
        return http.stream, answer.body

    async def _read(self, path: str) -> tuple[dict[str, str], bytes]:
        kept, self._kept = self._kept, None
        http = kept or await self._fresh()
        try:
            answer = await http.ask("GET", path)
        except BaseException as error:
            await http.stream.close()
            if kept is not None and isinstance(error, Cut):  # nothing tells how long it has been gone
                return await self._read(path)
            raise
        if http.may_be_asked_again:
            self._kept = http
        else:
            await http.stream.close()
        if answer.code != 200:
            raise received(_object(answer.body))
        return answer.headers, answer.body

    async def _fresh(self) -> _Http:
        """A new connection. Raises ConnectionRefusedError, FileNotFoundError, Cut, HoldfastError."""
        try:
            return _Http(await within(self._connect(), CONNECT_S))
        except (ConnectionRefusedError, FileNotFoundError):
            raise
        except asyncio.TimeoutError:
            raise Cut(f"no connection within {CONNECT_S:g} s") from None
        except OSError as error:
            raise Cut(str(error)) from error


def _begin_or_go_on(order: dict[str, Any], riding: Riding) -> tuple[str, str, bytes]:
    """Method, path and body."""
    if riding.is_known:
        return "GET", f"/calls/{order['call']}?out={riding.received}", b""
    now_s = time.monotonic()
    riding.asked_s = now_s if riding.asked_s is None else riding.asked_s
    return "POST", "/calls", json.dumps({**order, "age_s": now_s - riding.asked_s}).encode()


@contextlib.contextmanager
def _passing_on(riding: Riding, terminal: int) -> Iterator[None]:
    """Ctrl-C and the terminal's size go to the verb; a second Ctrl-C leaves it."""
    loop, presses = asyncio.get_running_loop(), itertools.count()

    def interrupted() -> None:
        if next(presses):
            riding.leave()
        else:
            riding.signal(signal.SIGINT)

    def resized() -> None:
        with contextlib.suppress(OSError):
            riding.resize(os.get_terminal_size(terminal).columns)

    loop.add_signal_handler(signal.SIGINT, interrupted)
    loop.add_signal_handler(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        loop.remove_signal_handler(signal.SIGWINCH)


class _Answer(NamedTuple):
    """To one request. With code 101 `body` is what has come of the frames that follow."""

    code: int
    headers: dict[str, str]
    body: bytes


class _Http:
    """The client's end of one connection."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._protocol = h11.Connection(h11.CLIENT)

    @property
    def may_be_asked_again(self) -> bool:
        """Whether the service keeps the connection."""
        return self._protocol.our_state is h11.IDLE

    async def ask(self, method: str, path: str, body: bytes = b"", *, upgrade: bool = False) -> _Answer:
        """Raises Cut when the connection ends before the answer, HoldfastError when this is no service."""
        headers = [("Host", "node"), ("Content-Length", str(len(body)))]
        if upgrade:
            headers += [("Upgrade", UPGRADE), ("Connection", "Upgrade")]
        asked: list[h11.Event] = [h11.Request(method=method, target=path, headers=headers), h11.Data(data=body)]
        try:
            await self.stream.write(b"".join(self._protocol.send(e) or b"" for e in [*asked, h11.EndOfMessage()]))
            return await self._answer()
        except OSError as error:
            raise Cut(str(error)) from error
        except h11.ProtocolError as error:
            raise HoldfastError(f"what answers there is no node service: {error}") from error

    async def _answer(self) -> _Answer:
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                piece = await self.stream.read()
                if not piece:
                    raise Cut("the connection was closed")
                self._protocol.receive_data(piece)
            elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                return _Answer(101, {}, self._protocol.trailing_data[0])
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > _ANSWER_BYTES:
                    raise HoldfastError(f"an answer of more than {_ANSWER_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                break
            else:
                raise Cut("the connection was closed")
        if {self._protocol.our_state, self._protocol.their_state} == {h11.DONE}:
            self._protocol.start_next_cycle()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        return _Answer(head.status_code, headers, bytes(body))


def _object(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except ValueError as error:
        raise HoldfastError(f"what answers there is no node service: {error}") from error
    if not isinstance(told, dict):
        raise HoldfastError("what answers there is no node service: no JSON object")
    return told
