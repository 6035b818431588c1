"""A relay and its client as processes, with plain targets: what goes through, over what, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import relays
from tests.labs.relays import connecting
from tests.waiting import until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def echoing() -> Iterator[str]:
    with relays.target(relays.echo) as word:
        yield word


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, echoing: str) -> Iterator[relays.Relay]:
    with relays.relay(tmp_path_factory.mktemp("relay"), "--target", echoing) as running:
        yield running


def said(child: subprocess.Popen[bytes], sent: bytes) -> bytes:
    """What comes back for `sent`, which is as long."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(sent)
    came = b""
    while len(came) < len(sent):
        data = child.stdout.read(len(sent) - len(came))
        assert data, child.stderr.read() if child.stderr else b""
        came += data
    return came


def ended(child: subprocess.Popen[bytes], sent: bytes = b"") -> tuple[int, str]:
    """Exit status and what it said, once its stdin has ended."""
    _, told = child.communicate(sent, timeout=60)
    return child.returncode, told.decode()


def test_bytes_pass_and_the_end_of_one_direction_is_carried(tmp_path: Path) -> None:
    sent = os.urandom(3_000_000)
    with relays.target(relays.digest) as word, relays.relay(tmp_path / "r", "--target", word) as running:
        child = connecting(running.url(), word)
        out, told = child.communicate(sent, timeout=30)  # the digest comes only after the end

        assert (child.returncode, told) == (0, b"")
        assert out.decode() == hashlib.sha256(sent).hexdigest()
        until(lambda: "has ended" in running.log)


def test_a_session_goes_on_after_a_cut(server: relays.Relay, echoing: str) -> None:
    with relays.cutter(server.port) as between:
        child = connecting(server.url(between.port), echoing)
        assert said(child, b"before") == b"before"

        between.cut()

        assert said(child, b"after") == b"after"
        assert between.connections == 2
        assert ended(child) == (0, "")


def test_silence_is_noticed_within_the_bound_and_a_long_stop_is_got_over(server: relays.Relay, echoing: str) -> None:
    """Two clients at a time: for both, time has to pass."""
    with relays.cutter(server.port) as mute, relays.cutter(server.port) as between:
        waiting, sleeping = (connecting(server.url(one.port), echoing) for one in (mute, between))
        for child in (waiting, sleeping):
            assert said(child, b"before") == b"before"
        mute.silence()
        os.kill(sleeping.pid, signal.SIGSTOP)
        began_s = time.monotonic()
        until(lambda: time.monotonic() - began_s > 7)

        os.kill(sleeping.pid, signal.SIGCONT)

        until(lambda: between.connections == 2)
        assert said(sleeping, b"after") == b"after"
        assert said(waiting, b"after") == b"after"
        assert time.monotonic() - began_s < 40  # 10 s of silence, and a busy machine
        assert [ended(child) for child in (waiting, sleeping)] == [(0, ""), (0, "")]


def test_a_restarted_relay_is_told_in_one_sentence(tmp_path: Path, echoing: str) -> None:
    with relays.relay(tmp_path / "r", "--target", echoing) as first:
        child = connecting(first.url(), echoing)
        assert said(child, b"before") == b"before"
        first.child.kill()
        first.child.wait()
    with relays.relay(tmp_path / "r", "--target", echoing, port=first.port):
        status, told = ended(child)

    assert status == 10
    assert told.startswith("error: the session is lost: it was cut for more than 10 min, or the relay was restarted")


def test_a_session_that_nobody_resumes_is_forgotten(tmp_path: Path, echoing: str) -> None:
    with (
        relays.relay(tmp_path / "r", "--target", echoing, "--keep", "1s") as running,
        relays.cutter(running.port) as between,
    ):
        child = connecting(running.url(between.port), echoing)
        assert said(child, b"x") == b"x"
        os.kill(child.pid, signal.SIGSTOP)
        between.cut()
        until(lambda: "has ended: it was cut for more than 1 s" in running.log)
        os.kill(child.pid, signal.SIGCONT)
        status, told = ended(child)

    assert status == 10
    assert "the session is lost" in told


def test_a_session_without_data_is_ended(tmp_path: Path, echoing: str) -> None:
    with relays.relay(tmp_path / "r", "--target", echoing, "--idle", "3s") as running:
        child = connecting(running.url(), echoing)
        assert said(child, b"x") == b"x"

        assert child.wait(60) == 10
        assert b"the relay has ended the session: nothing was sent for 3 s" in child.communicate()[1]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_client_that_leaves_leaves_nothing_behind(server: relays.Relay, echoing: str, number: int) -> None:
    before = server.log.count("has ended")
    child = connecting(server.url(), echoing)
    assert said(child, b"x") == b"x"

    child.send_signal(number)

    assert child.wait(60) == 0
    until(lambda: server.log.count("has ended") == before + 1)
    child.communicate()


def test_who_does_not_read_holds_up_the_other_end_and_nothing_else(tmp_path: Path) -> None:
    whole, sent = os.urandom(1 << 20) * 48, 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for at in range(0, len(whole), 1 << 16):
            writer.write(whole[at : at + (1 << 16)])
            await writer.drain()
            sent = at + (1 << 16)

    def stands() -> bool:
        before = sent
        threading.Event().wait(0.5)
        return 0 < sent == before

    with relays.target(flood) as word, relays.relay(tmp_path / "r", "--target", word) as running:
        child = connecting(running.url(), word)
        until(stands)
        assert sent < 30 << 20  # the window, and what lies in sockets and pipes

        out, told = child.communicate(timeout=60)

        assert hashlib.sha256(out).digest() == hashlib.sha256(whole).digest()
        assert told == b""
        assert "is cut" not in running.log


def test_a_relay_that_is_told_to_stop_lets_sessions_end(tmp_path: Path, echoing: str) -> None:
    with relays.relay(tmp_path / "r", "--target", echoing) as running:
        child = connecting(running.url(), echoing)
        assert said(child, b"before") == b"before"

        running.child.send_signal(signal.SIGTERM)
        until(lambda: "draining: 1 sessions" in running.log)
        late = connecting(running.url(), echoing)
        assert "the relay is shutting down" in ended(late)[1]
        assert said(child, b"after") == b"after"

        assert ended(child) == (0, "")
        assert running.child.wait(60) == 0


def test_a_second_signal_ends_sessions_at_once(tmp_path: Path, echoing: str) -> None:
    with relays.relay(tmp_path / "r", "--target", echoing) as running:
        child = connecting(running.url(), echoing)
        assert said(child, b"x") == b"x"
        running.child.send_signal(signal.SIGTERM)
        until(lambda: "draining" in running.log)

        running.child.send_signal(signal.SIGTERM)

        assert running.child.wait(60) == 0
        assert child.wait(60) == 10
        assert b"the relay has ended the session: the relay is shutting down" in child.communicate()[1]


def test_a_target_that_is_not_there(tmp_path: Path) -> None:
    word = f"127.0.0.1:{relays.free_port()}"
    with relays.relay(tmp_path / "r", "--target", word) as running:
        status, told = ended(connecting(running.url(), word))

    assert (status, told) == (10, f"error: the relay cannot reach {word}: connection refused\n")


def test_tokens_have_a_rate_each(tmp_path: Path) -> None:
    sent = bytes(3_000_000)
    with relays.target(relays.digest) as word:
        tokens = tmp_path / "tokens"
        tokens.write_text(f"alice {hashlib.sha256(relays.TOKEN.encode()).hexdigest()} {word} 1MB/s\n")
        with relays.relay(tmp_path / "r", "--tokens", str(tokens)) as running:
            began_s = time.monotonic()
            child = connecting(running.url(), word)
            child.communicate(sent, timeout=30)

    assert child.returncode == 0
    assert 1.5 < time.monotonic() - began_s < 60  # the first second's worth is free


def test_a_target_may_end_first_and_go_on_listening(tmp_path: Path) -> None:
    heard = bytearray()

    async def bye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        while data := await reader.read(1 << 16):
            heard.extend(data)

    with relays.target(bye) as word, relays.relay(tmp_path / "r", "--target", word) as running:
        child = connecting(running.url(), word)
        assert child.stdout is not None
        assert child.stdout.read() == b"bye"  # to the end, while the client lives

        sent = os.urandom(1_000_000)
        assert ended(child, sent) == (0, "")
        until(lambda: bytes(heard) == sent)


def test_cuts_at_any_byte_lose_and_double_nothing(tmp_path: Path) -> None:
    sent = os.urandom(3_000_000)
    with (
        relays.target(relays.digest) as word,
        relays.relay(tmp_path / "r", "--target", word) as running,
        relays.cutter(running.port, every_bytes=90_001, cuts=30) as between,
    ):
        child = connecting(running.url(between.port), word)
        out, told = child.communicate(sent, timeout=60)

        assert (child.returncode, told) == (0, b"")
        assert out.decode() == hashlib.sha256(sent).hexdigest()
        assert between.cuts == 30


@pytest.mark.soak
def test_a_long_absence_is_said_once_and_its_end_too(server: relays.Relay, echoing: str) -> None:
    with relays.cutter(server.port) as between:
        child = connecting(server.url(between.port), echoing)
        assert said(child, b"before") == b"before"

        between.refuse(True)
        assert child.stderr is not None
        line = child.stderr.readline()
        between.refuse(False)

        assert line.startswith(b"relay: no connection to ws://127.0.0.1:")
        assert said(child, b"after") == b"after"
        status, told = ended(child)
        assert (status, told[:17]) == (0, "relay: back after")
