"""The end that ssh starts as its ProxyCommand: stdin and stdout over a session that is resumed after every cut.

The first connection is tried once, so that ssh says at once what is wrong. A session that stands is resumed for as long
as the relay keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import ssl
import sys
import time
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidProxy, InvalidProxyStatus, InvalidStatus

from holdfast.deadline import within
from holdfast.errors import HostUnreachable, UsageError
from holdfast.relay.frames import MOST_FRAME_BYTES, OVER, PIECE_BYTES, REFUSED, BadFrame
from holdfast.relay.handshake import AUTHORIZATION, OURS, RESUME, TARGET, Resumption
from holdfast.relay.liveness import JUMP_S
from holdfast.relay.stream import Stream
from holdfast.relay.words import cause, quiet_logger, shown
from holdfast.units import show_duration

OPEN_S = 10.0
FIRST_PAUSE_S, MOST_PAUSE_S = 0.1, 30.0
SAY_AFTER_S = 10.0  # without a connection; ssh shows what we say, so it is said once a cut
_PASSING = frozenset({429, 503})  # refusals of the relay that time mends
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where to and as whom. `ca` is a file of certificates that is trusted in place of the system's."""

    url: str
    target: str
    token: str
    ca: str | None = None


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the relay said of the session; with it the session can be resumed."""

    session: str
    secret: bytes
    keep_s: float
    received: int


class Final(HostUnreachable):
    """The relay has refused, and would again."""


def checked_url(url: str) -> str:
    """A URL of a relay. Raises UsageError: a token never goes over a line that others can read."""
    try:
        parts = urlsplit(url)
        plain, host, _ = parts.scheme == "ws", parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("ws", "wss") or not host or parts.username is not None or parts.fragment:
        raise UsageError(f"{url!r} is not the URL of a relay", hint="write it like wss://relay.example.org/ssh")
    if plain and host not in _LOOPBACK:
        raise UsageError(f"{url} would carry the token unencrypted", hint=f"wss{url[2:]}")
    return url


def pause_s(failures: int, rng: random.Random) -> float:
    """How long to wait after so many failures in a row: full jitter under a ceiling that doubles."""
    return rng.uniform(0, min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 20)))


class _Dial(connect):
    """A redirection is never followed: it would carry the token to somebody else."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """The error as it is."""
        return exc


class Client:
    """One session from its first connection to its end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tls = _tls(settings)
        self._turn = 0
        self._connection: ClientConnection | None = None

    async def run(self) -> None:
        """Until both directions have ended. Raises HostUnreachable."""
        ticket = await self._first()
        source, sink = await _standard_streams()
        stream = Stream(source, sink)
        stream.begin()
        try:
            while not await self._carried(stream, ticket):
                ticket = await self._again(stream, ticket)
        except Final:
            if not stream.is_delivered:  # else only the relay's last word is missing
                raise
        finally:
            await self._leave()
            await stream.end()
            if not (stream.is_delivered or sink.is_closing()):
                sink.transport.abort()  # whoever should read it may never do so
            sink.close()
            with contextlib.suppress(OSError):
                await sink.wait_closed()

    async def _carried(self, stream: Stream, ticket: Ticket) -> bool:
        """Whether the session is over rather than cut."""
        assert self._connection is not None
        try:
            ended = await stream.carry(self._connection, ticket.received)
        except BadFrame as bad:
            raise Final(f"the relay broke the protocol: {bad}") from bad
        if ended.code == REFUSED:
            raise Final(f"the relay has ended the session: {shown(ended.reason)}")
        if ended.code != OVER:
            self._connection.transport.abort()
        return ended.code == OVER

    async def _first(self) -> Ticket:
        try:
            return await self._dial({TARGET: self._settings.target}, None)
        except ssl.SSLCertVerificationError as error:
            raise HostUnreachable(
                f"the certificate of {self._settings.url} is not trusted: {error.verify_message}",
                hint="a private authority is named by --ca FILE",
            ) from error
        except InvalidProxy as error:  # its own words would show the password
            raise UsageError(f"the proxy in the environment cannot be used: {error.msg}") from error
        except ImportError as error:
            raise UsageError("the proxy in the environment speaks SOCKS", hint="pip install python-socks") from error
        except (OSError, EOFError, asyncio.TimeoutError, InvalidHandshake, ConnectionClosed) as error:
            raise HostUnreachable(
                f"cannot reach the relay {self._settings.url}: {_told(error)}", hint=_hint(self._settings.url)
            ) from error

    async def _again(self, stream: Stream, ticket: Ticket) -> Ticket:
        """Another connection for the session. Raises Final when it is lost."""
        failures, said = 0, False
        cut_s, why = time.monotonic(), "the connection was lost"
        while time.monotonic() - cut_s < ticket.keep_s:
            await _pause(pause_s(failures, random.Random()))  # noqa: S311 - jitter
            self._turn += 1
            wish = Resumption(ticket.session, self._turn, stream.received)
            try:
                found = await self._dial({RESUME: wish.header(ticket.secret)}, ticket)
            except (OSError, EOFError, asyncio.TimeoutError, InvalidHandshake, ConnectionClosed) as error:
                failures, why = failures + 1, _told(error)
            else:
                if said:
                    _say(f"back after {show_duration(time.monotonic() - cut_s)}")
                return found
            if not said and time.monotonic() - cut_s > SAY_AFTER_S:
                said = True
                _say(f"no connection to {self._settings.url} ({why}); trying on for {show_duration(ticket.keep_s)}")
        raise Final(
            f"the session is lost: no connection to {self._settings.url} for {show_duration(ticket.keep_s)} ({why})"
        )

    async def _dial(self, headers: dict[str, str], ticket: Ticket | None) -> Ticket:
        """One attempt. Raises Final, and what passes by itself: OSError, InvalidHandshake, ConnectionClosed, …"""
        try:
            self._connection = await _Dial(
                self._settings.url,
                additional_headers={AUTHORIZATION: f"Bearer {self._settings.token}", **headers},
                ssl=self._tls,
                compression=None,
                max_size=MOST_FRAME_BYTES,
                open_timeout=OPEN_S,
                ping_interval=None,  # the stream asks for a sign of life itself, and only where there is silence
                close_timeout=1,
                write_limit=MOST_FRAME_BYTES,
                user_agent_header=None,
                logger=quiet_logger(),
            )
            welcome = await within(self._connection.recv(), OPEN_S)
        except InvalidStatus as error:
            response = error.response
            if OURS in response.headers and response.status_code not in _PASSING:
                raise Final(shown((response.body or b"").decode(errors="replace"))) from error
            raise
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.code == REFUSED:
                raise Final(shown(closed.rcvd.reason)) from closed
            raise
        return _ticket(welcome, ticket)

    async def _leave(self) -> None:
        """Tell the relay that nobody will come back for the session."""
        if self._connection is not None:
            await self._connection.close(OVER)


def _ticket(welcome: str | bytes, known: Ticket | None) -> Ticket:
    try:
        told = json.loads(welcome)
        ticket = Ticket(
            str(told["session"]), bytes.fromhex(told["secret"]), float(told["keep_s"]), int(told["received"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Final("what answers there is not a relay of holdfast") from error
    if known is not None and ticket.session != known.session:
        raise Final("the relay answered for another session")
    return ticket


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if not settings.url.startswith("wss:"):
        return None
    try:
        return ssl.create_default_context(cafile=settings.ca)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{settings.ca} holds no certificates: {cause(error)}") from error


async def _standard_streams() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Raises UsageError when one of them is a file."""
    loop = asyncio.get_running_loop()
    source = asyncio.StreamReader(limit=PIECE_BYTES)
    try:
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin.buffer)
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), _stdout_to_close()
        )
    except ValueError as error:
        raise UsageError("stdin and stdout must be pipes, as ssh gives them to a ProxyCommand") from error
    return source, asyncio.StreamWriter(transport, protocol, None, loop)


def _stdout_to_close() -> BinaryIO:
    """What was stdout. Its end must reach the reader while this process goes on, so nothing else keeps it open."""
    taken = open(os.dup(1), "wb", buffering=0)  # noqa: PTH123, SIM115 - the transport closes it
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - the descriptor is what is wanted
        os.dup2(nothing.fileno(), 1)
    return taken


async def _pause(length_s: float) -> None:
    """Wait; no longer than until this machine has been asleep."""
    end_s, step_s = time.monotonic() + length_s, 1.0
    while (left_s := end_s - time.monotonic()) > 0:
        before_s = time.time()
        await asyncio.sleep(min(step_s, left_s))
        if time.time() - before_s > step_s + JUMP_S:
            return


def _hint(url: str) -> str:
    host = urlsplit(url).hostname or ""
    proxied = "https" in getproxies() and not proxy_bypass(host)
    return "a proxy lies between, by HTTPS_PROXY; NO_PROXY exempts a host" if proxied else ""


def _told(error: BaseException) -> str:
    """Why one attempt failed, without anything secret."""
    if isinstance(error, InvalidProxyStatus):
        return f"the proxy answered {error.response.status_code}"
    if isinstance(error, InvalidStatus):
        body = (error.response.body or b"").decode(errors="replace") if OURS in error.response.headers else ""
        return shown(body) or f"the server answered {error.response.status_code}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer within {OPEN_S:g} s"
    if isinstance(error, OSError):
        return cause(error)
    return str(error) or "the connection was closed"


def _say(sentence: str) -> None:
    sys.stderr.write(f"relay: {sentence}\r\n")  # a terminal that ssh has made raw needs both
    sys.stderr.flush()
