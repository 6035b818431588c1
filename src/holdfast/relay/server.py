"""The end that stands where the targets can be reached: lets in who has a token, and keeps sessions while they are cut.

Every request is judged before it is a WebSocket: a refusal is an HTTP status and a sentence.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import ssl
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from holdfast.deadline import within
from holdfast.errors import HoldfastError
from holdfast.relay.frames import MOST_FRAME_BYTES, OVER, REFUSED, WINDOW_BYTES, BadFrame
from holdfast.relay.handshake import OURS, Asked, Refused, Resumption, asked, session_secret
from holdfast.relay.limits import Limits, Pace, place_on_the_net
from holdfast.relay.stream import Stream, unpaced
from holdfast.relay.tokens import Token, matching, place_of
from holdfast.relay.words import cause, quiet_logger, shown
from holdfast.units import show_duration

TARGET_ANSWERS_S = 10.0
CONNECTIONS, CONNECTIONS_PER_S = 60, 1.0  # of one address, and of one token
WRONG, WRONG_PER_S = 10, 1 / 30  # tokens and proofs from one address
_TICK_S = 1.0
_REASON_BYTES = 120  # a close frame has room for 123


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a relay behaves. `behind_proxy`: addresses are those that the proxy before it names."""

    tokens: Sequence[Token]
    keep_s: float = 600.0  # a session that is cut
    idle_s: float = 86_400.0  # without a byte of data
    drain_s: float = 30.0
    most_sessions: int = 64
    behind_proxy: bool = False


@dataclass(slots=True, kw_only=True)
class Session:
    """One connection to a target. `turn` is the number of the last resumption."""

    id: str
    token: Token
    target: str
    stream: Stream
    writer: asyncio.StreamWriter
    turn: int = 0
    connection: ServerConnection | None = None
    cut_s: float = 0.0  # when the last connection was lost
    is_over: bool = False
    turns: asyncio.Lock = field(default_factory=asyncio.Lock)  # one connection at a time carries it

    def __str__(self) -> str:
        return f"session {self.id[:8]} of {self.token.name} to {self.target}"


class Relay:
    """Serves until it is told to stop; `drain` tells it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key = secrets.token_bytes(32)
        self._sessions: dict[str, Session] = {}
        self._opening = 0
        self._connections = Limits(CONNECTIONS, CONNECTIONS_PER_S)
        self._wrong = Limits(WRONG, WRONG_PER_S)
        self._paces = {token.name: Pace(token.bytes_per_s) for token in settings.tokens if token.bytes_per_s}
        self._draining = asyncio.Event()
        self._at_once = asyncio.Event()

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None) -> Server:
        """Raises OSError where it cannot."""
        server: Server = await serve(
            self._serve,
            host,
            port,
            ssl=tls,
            process_request=self._admit,
            compression=None,
            max_size=MOST_FRAME_BYTES,
            ping_interval=None,  # the stream asks for a sign of life itself, and only where there is silence
            close_timeout=2,
            write_limit=MOST_FRAME_BYTES,
            server_header=None,
            logger=quiet_logger(),
        )
        return server

    async def run(self, server: Server) -> None:
        """Until drained."""
        ticking = asyncio.ensure_future(self._tick())
        try:
            await self._draining.wait()
            await self._empty()
        finally:
            ticking.cancel()
            last = "the relay is shutting down"
            await asyncio.gather(*(self._end(session, last) for session in list(self._sessions.values())))
            server.close()
            await server.wait_closed()

    def drain(self) -> None:
        """Take no new sessions, end when the last has ended or after the grace; called again, at once."""
        (self._at_once if self._draining.is_set() else self._draining).set()

    async def _empty(self) -> None:
        if self._sessions:
            said = show_duration(self._settings.drain_s)
            say(f"draining: {len(self._sessions)} sessions, at most {said}; a second signal ends them at once")
        deadline_s = time.monotonic() + self._settings.drain_s
        while self._sessions and not self._at_once.is_set() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.1)

    async def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        address = self._address(connection, request)
        try:
            self._judge(_asked(request), address)
        except Refused as refused:
            say(f"{address} refused: {refused}")
            response = connection.respond(HTTPStatus(refused.status), f"{refused}\n")
            response.headers[OURS] = "refused"
            return response
        return None

    def _address(self, connection: ServerConnection, request: Request) -> str:
        forwarded = request.headers.get_all("X-Forwarded-For") if self._settings.behind_proxy else []
        if forwarded:
            return shown(forwarded[-1].rpartition(",")[2])  # the last is what the proxy itself has seen
        peer = connection.remote_address
        return str(peer[0]) if peer else "somebody"

    def _judge(self, wish: Asked, address: str) -> None:
        """Raises Refused."""
        now_s, place = time.monotonic(), place_on_the_net(address)
        wrong_s = self._wrong.wait_s(place, now_s)
        if wrong_s:
            raise Refused(429, f"too many wrong tokens from {address}: try again in {show_duration(wrong_s)}")
        self._count(("address", place), now_s)
        token = matching(self._settings.tokens, wish.token)
        if token is None:
            self._wrong.take(place, now_s)
            raise Refused(401, "the token is not known here")
        self._count(("token", token.name), now_s)
        if wish.resumption is not None:
            self._judge_resumption(wish.resumption, token, place, now_s)
        elif self._draining.is_set():
            raise Refused(503, "the relay is shutting down")
        elif wish.target not in token.targets:
            raise Refused(403, f"this token may not go to {wish.target[:80]!r}")

    def _count(self, key: tuple[str, str], now_s: float) -> None:
        wait_s = self._connections.wait_s(key, now_s)
        if wait_s:
            raise Refused(429, f"too many connections of this {key[0]}: try again in {show_duration(wait_s)}")
        self._connections.take(key, now_s)

    def _judge_resumption(self, wish: Resumption, token: Token, place: str, now_s: float) -> None:
        session = self._sessions.get(wish.id)
        if session is None or session.token.name != token.name:
            kept = show_duration(self._settings.keep_s)
            raise Refused(410, f"the session is lost: it was cut for more than {kept}, or the relay was restarted")
        if not wish.is_proven(session_secret(self._key, session.id)):
            self._wrong.take(place, now_s)
            raise Refused(403, "the session belongs to somebody else: the proof is wrong")
        if wish.turn <= session.turn:
            raise Refused(409, "this resumption was made before")
        session.turn = wish.turn

    async def _serve(self, connection: ServerConnection) -> None:
        try:
            await self._take(connection)
        except Exception:  # the library would keep it to itself
            traceback.print_exc()
            raise

    async def _take(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        wish = _asked(connection.request)
        try:
            if wish.resumption is None:
                session, received, turn = await self._open(wish), 0, 0
            else:
                found = self._sessions.get(wish.resumption.id)
                if found is None:
                    raise Refused(410, "the session has ended")
                session, received, turn = found, wish.resumption.received, wish.resumption.turn
        except Refused as refused:
            await connection.close(REFUSED, _reason(str(refused)))
            return
        if session.connection is not None:
            session.connection.transport.abort()  # half dead: the client has left it behind
        async with session.turns:
            if session.turn == turn and not session.is_over:
                await self._carry(session, connection, received)
            else:
                why = "it has ended" if session.is_over else "another connection carries it"
                await connection.close(REFUSED, f"the session is lost: {why}")

    async def _open(self, wish: Asked) -> Session:
        """Raises Refused."""
        token = matching(self._settings.tokens, wish.token)
        assert token is not None
        if len(self._sessions) + self._opening >= self._settings.most_sessions:
            raise Refused(503, f"the relay has {self._settings.most_sessions} sessions and takes no more")
        self._opening += 1
        try:
            host, port = place_of(wish.target)
            reader, writer = await within(asyncio.open_connection(host, port), TARGET_ANSWERS_S)
        except asyncio.TimeoutError as error:
            raise Refused(502, f"{wish.target} does not answer within {TARGET_ANSWERS_S:g} s") from error
        except OSError as error:
            raise Refused(502, f"the relay cannot reach {wish.target}: {cause(error)}") from error
        finally:
            self._opening -= 1
        stream = Stream(reader, writer, pace=self._paces.get(token.name, unpaced))
        session = Session(
            id=secrets.token_hex(16),
            token=token,
            target=wish.target,
            stream=stream,
            writer=writer,
        )
        stream.begin()
        self._sessions[session.id] = session
        say(f"{session} begins")
        return session

    async def _carry(self, session: Session, connection: ServerConnection, received: int) -> None:
        session.connection = connection
        try:
            await connection.send(json.dumps(self._welcome(session)))
            ended = await session.stream.carry(connection, received)
        except ConnectionClosed:
            pass
        except BadFrame as bad:
            await self._end(session, f"the protocol was broken: {bad}")
        except Exception:
            await self._end(session, "the relay has failed")
            raise
        else:
            if ended.code == OVER:
                await self._end(session)
        finally:
            session.connection = None
            session.cut_s = time.monotonic()
            connection.transport.abort()
        if not session.is_over and not session.stream.is_heard:
            await self._end(session, "nobody took it")  # nor can anybody: its secret may never have arrived
        elif not session.is_over:
            say(f"{session} is cut, kept for {show_duration(self._settings.keep_s)}")

    def _welcome(self, session: Session) -> dict[str, object]:
        return {
            "session": session.id,
            "secret": session_secret(self._key, session.id).hex(),
            "keep_s": self._settings.keep_s,
            "window_bytes": WINDOW_BYTES,
            "received": session.stream.received,
        }

    async def _end(self, session: Session, why: str = "") -> None:
        """Forget it and hang up on both sides. `why` is told to the client; without one it has ended by itself."""
        if session.is_over:
            return
        session.is_over = True
        self._sessions.pop(session.id, None)
        await session.stream.end()
        session.writer.close()
        if session.connection is not None:
            await session.connection.close(REFUSED if why else OVER, _reason(why))
        say(f"{session} has ended{': ' if why else ''}{why}")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = time.monotonic()
            self._connections.forget(now_s)
            self._wrong.forget(now_s)
            for session in list(self._sessions.values()):
                why = self._overdue(session, now_s)
                if why:
                    await self._end(session, why)

    def _overdue(self, session: Session, now_s: float) -> str:
        """Why it should end now; "" when it should not."""
        if session.connection is None and session.cut_s and now_s - session.cut_s > self._settings.keep_s:
            return f"it was cut for more than {show_duration(self._settings.keep_s)}"
        if now_s - session.stream.moved_s > self._settings.idle_s:
            return f"nothing was sent for {show_duration(self._settings.idle_s)}"
        return ""


def _asked(request: Request) -> Asked:
    try:
        return asked(request.headers)
    except LookupError as error:
        raise Refused(400, "a header is there twice") from error


def say(sentence: str) -> None:
    """A line of the relay's log, which is stderr; what others sent is shown without control characters."""
    sys.stderr.write(f"{shown(sentence)}\n")
    sys.stderr.flush()


def _reason(sentence: str) -> str:
    return sentence.encode()[:_REASON_BYTES].decode(errors="ignore")


async def run(settings: Settings, *, host: str, port: int, tls: ssl.SSLContext | None) -> None:
    """Serve until SIGTERM or SIGINT. Raises HoldfastError where it cannot listen."""
    relay = Relay(settings)
    try:
        server = await relay.listen(host, port, tls)
    except OSError as error:
        raise HoldfastError(f"cannot listen on {host}:{port}: {cause(error)}", hint="--listen ADDRESS:PORT") from error
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, relay.drain)
    for listener in server.sockets:
        address, port = listener.getsockname()[:2]
        say(f"listening on {'wss' if tls else 'ws'}://{f'[{address}]' if ':' in address else address}:{port}")
    for token in settings.tokens:
        say(f"{token.name} may go to {', '.join(sorted(token.targets))}")
    await relay.run(server)
