"""Who is not let in, and what is not believed: a hostile client against a real relay."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from holdfast.relay.frames import Frame, Kind, pack, unpack
from holdfast.relay.handshake import Resumption
from tests.labs import relays
from tests.labs.relays import TOKEN
from tests.waiting import until

pytestmark = pytest.mark.e2e
OTHER = "another-token-of-the-tests"


@pytest.fixture(scope="module")
def echoing() -> Iterator[str]:
    with relays.target(relays.echo) as word:
        yield word


@pytest.fixture
def server(tmp_path: Path, echoing: str) -> Iterator[relays.Relay]:
    """One for each test: they use up its patience."""
    tokens = tmp_path / "tokens"
    names = {"alice": TOKEN, "bob": OTHER}
    tokens.write_text(
        "".join(f"{name} {hashlib.sha256(token.encode()).hexdigest()} {echoing}\n" for name, token in names.items())
    )
    with relays.relay(tmp_path / "r", "--tokens", str(tokens), "--behind-proxy", "--sessions", "3") as running:
        yield running


def dial(server: relays.Relay, token: str = TOKEN, address: str = "", **headers: str) -> connect:
    """A connection that says `headers`, with _ for -."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    if address:
        told["X-Forwarded-For"] = f"203.0.113.99, {address}"  # the first is the client's own invention
    return connect(
        server.url(), additional_headers={"Authorization": f"Bearer {token}", **told}, compression=None, proxy=None
    )


@dataclass(frozen=True)
class Held:
    """A session and what the relay told of it."""

    connection: ClientConnection
    id: str
    secret: bytes

    def resumption(self, turn: int, received: int = 0) -> str:
        return Resumption(self.id, turn, received).header(self.secret)


@contextlib.asynccontextmanager
async def session(server: relays.Relay, target: str) -> AsyncIterator[Held]:
    """One that has said a word."""
    async with dial(server, Holdfast_Target=target) as connection:
        told = json.loads(await connection.recv())
        held = Held(connection, told["session"], bytes.fromhex(told["secret"]))
        await connection.send(pack(Frame(Kind.ACK, 0)))
        await connection.send(pack(Frame(Kind.DATA, 0, b"hello")))
        while unpack(await connection.recv()) != Frame(Kind.DATA, 0, b"hello"):
            pass
        yield held


async def refusal(dialled: connect) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        await dialled
    assert refused.value.response.headers["Holdfast-Relay"] == "refused"
    return refused.value.response.status_code, (refused.value.response.body or b"").decode().strip()


async def closing(connection: ClientConnection) -> tuple[int, str]:
    """Code and reason with which the relay hangs up."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await connection.recv()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


def test_a_wrong_token(server: relays.Relay, echoing: str) -> None:
    assert asyncio.run(refusal(dial(server, "wrong", Holdfast_Target=echoing))) == (401, "the token is not known here")


@pytest.mark.parametrize("change", ["localhost:{port}", "127.0.0.1:0{port}", "127.1:{port}", "127.0.0.1:1", ""])
def test_a_target_that_is_not_configured_literally(server: relays.Relay, echoing: str, change: str) -> None:
    word = change.format(port=echoing.rpartition(":")[2])

    assert asyncio.run(refusal(dial(server, Holdfast_Target=word))) == (403, f"this token may not go to {word!r}")


def test_too_many_wrong_tokens_of_one_address(server: relays.Relay, echoing: str) -> None:
    async def work() -> None:
        for _ in range(10):
            assert (await refusal(dial(server, "wrong", "198.51.100.1", Holdfast_Target=echoing)))[0] == 401

        status, said = await refusal(dial(server, TOKEN, "198.51.100.1", Holdfast_Target=echoing))
        assert (status, said[:40]) == (429, "too many wrong tokens from 198.51.100.1:")
        async with dial(server, TOKEN, "198.51.100.2", Holdfast_Target=echoing) as other:
            assert json.loads(await other.recv())["received"] == 0

    asyncio.run(work())


def test_too_many_connections_of_one_token(server: relays.Relay) -> None:
    async def work() -> None:
        statuses = []
        while 429 not in statuses:  # one more comes in each second
            assert len(statuses) < 200
            refused = await refusal(dial(server, TOKEN, f"198.51.100.{len(statuses)}", Holdfast_Target="no:22"))
            statuses.append(refused[0])
        assert (len(statuses) > 60, set(statuses[:-1])) == (True, {403})

    asyncio.run(work())


def test_more_sessions_than_the_relay_takes(server: relays.Relay, echoing: str) -> None:
    async def work() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(session(server, echoing))
            async with dial(server, Holdfast_Target=echoing) as late:
                assert await closing(late) == (4000, "the relay has 3 sessions and takes no more")

    asyncio.run(work())


def test_an_oversized_frame_ends_the_session(server: relays.Relay, echoing: str) -> None:
    async def work() -> None:
        async with session(server, echoing) as held:
            await held.connection.send(pack(Frame(Kind.DATA, 5, bytes(300 << 10))))
            assert (await closing(held.connection))[0] == 1009
            until(lambda: "the protocol was broken" in server.log)
            assert (await refusal(dial(server, Holdfast_Resume=held.resumption(1))))[0] == 410

    asyncio.run(work())


def test_a_broken_protocol_ends_the_session(server: relays.Relay, echoing: str) -> None:
    async def work() -> None:
        async with session(server, echoing) as held:
            await held.connection.send(pack(Frame(Kind.DATA, 99, b"from the future")))
            assert await closing(held.connection) == (4000, "the protocol was broken: bytes from 99 where 5 is next")

    asyncio.run(work())


def test_a_resumption_ends_the_connection_before_it(server: relays.Relay, echoing: str) -> None:
    async def work() -> None:
        async with (
            session(server, echoing) as held,
            dial(server, Holdfast_Resume=held.resumption(1, received=2)) as second,
        ):
            assert json.loads(await second.recv())["received"] == 5
            while (frame := unpack(await second.recv())).kind is not Kind.DATA:
                pass
            assert frame == Frame(Kind.DATA, 2, b"llo")
            with pytest.raises(ConnectionClosed):
                while True:
                    await held.connection.recv()

    asyncio.run(work())


def test_a_resumption_that_was_heard_cannot_be_used_again(server: relays.Relay, echoing: str) -> None:
    async def work() -> None:
        async with session(server, echoing) as held:
            heard = held.resumption(7)
            async with dial(server, Holdfast_Resume=heard) as second:
                await second.recv()
                for old in (heard, held.resumption(6)):
                    answer = await refusal(dial(server, Holdfast_Resume=old))
                    assert answer == (409, "this resumption was made before")

    asyncio.run(work())


def test_a_session_without_its_secret(server: relays.Relay, echoing: str) -> None:
    async def work() -> None:
        async with session(server, echoing) as held:
            guessed = Resumption(held.id, 1, 0).header(bytes(32))
            answer = await refusal(dial(server, Holdfast_Resume=guessed))
            assert answer == (403, "the session belongs to somebody else: the proof is wrong")

    asyncio.run(work())


def test_a_session_of_another_token_is_as_unknown_as_one_that_never_was(server: relays.Relay, echoing: str) -> None:
    async def work() -> None:
        async with session(server, echoing) as held:
            foreign = await refusal(dial(server, OTHER, Holdfast_Resume=held.resumption(1)))
            never = await refusal(dial(server, Holdfast_Resume=Resumption("0" * 32, 1, 0).header(bytes(32))))
            assert foreign == never
            assert foreign[0] == 410 and foreign[1].startswith("the session is lost")

    asyncio.run(work())


def test_what_a_stranger_sends_cannot_forge_lines_of_the_log(server: relays.Relay) -> None:
    address = "\x9bred"

    asyncio.run(refusal(dial(server, "wrong", address, Holdfast_Target="a:1")))

    assert "\n?red refused: " in server.log


def holdfast(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "holdfast", "relay", *words]
    return subprocess.run(argv, env=relays.environ(**more), capture_output=True, text=True, timeout=30, check=False)


def test_tokens_never_cross_a_network_unencrypted() -> None:
    served = holdfast("serve", "--listen", "0.0.0.0:0", "--target", "gpu-a:22")
    asked = holdfast("connect", "ws://relay.example.org/ssh", "gpu-a", "22")

    assert (served.returncode, asked.returncode) == (2, 2)
    assert "unencrypted" in served.stderr and "unencrypted" in asked.stderr


def test_a_relay_without_targets_or_token_does_not_start() -> None:
    assert "there is no target" in holdfast("serve").stderr
    assert "there is no token" in holdfast("serve", "--target", "gpu-a:22", token="").stderr


def test_a_port_that_is_taken_is_a_sentence(server: relays.Relay) -> None:
    done = holdfast("serve", "--listen", f"127.0.0.1:{server.port}", "--target", "gpu-a:22")

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{server.port}: ")


@pytest.mark.parametrize(
    ("proxy", "status", "said"),
    [
        ("http://ann:pass-word@127.0.0.1:9", 10, "hint: a proxy lies between"),
        ("http://ann@127.0.0.1:9", 2, "cannot be used: username provided without password"),
        ("ftp://ann:pass-word@127.0.0.1:9", 2, "cannot be used: scheme ftp isn't supported"),
        ("socks5h://ann:pass-word@127.0.0.1:9", 2, "hint: pip install python-socks"),
    ],
)
def test_a_proxy_that_cannot_be_used(proxy: str, status: int, said: str) -> None:
    done = holdfast("connect", "wss://relay.example.org/ssh", "gpu-a", "22", HTTPS_PROXY=proxy)

    assert (done.returncode, "pass-word" in done.stderr) == (status, False)
    assert said in done.stderr
