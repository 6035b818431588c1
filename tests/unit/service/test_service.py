"""The service itself: what it answers, who may reach it, that there is one, and that it bears what anybody sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast import __version__, events, fsio, process, runs
from holdfast.errors import HoldfastError, UsageError
from holdfast.runs import RunDir, make_runtime
from holdfast.service import address
from holdfast.service.frames import Frame, Kind
from holdfast.service.server import MOST_CALLS, MOST_CONNECTIONS
from tests.unit.commands.scene import make_run
from tests.unit.service.lab import Node, ask, called, node, start
from tests.waiting import until

pytestmark = pytest.mark.e2e


def raw(path: Path, sent: bytes, *, ends: bool = True) -> bytes:
    """Whatever comes back to these bytes."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(20)
        link.connect(str(path))
        try:
            link.sendall(sent)
            if ends:
                link.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has hung up already
        parts = []
        try:
            while part := link.recv(1 << 16):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


def test_it_says_who_it_is(service: Node) -> None:
    told = ask(service.socket, lambda calls: calls.get("/ping"))

    assert told == {
        "ok": True,
        "pid": service.who.pid,
        "version": __version__,
        "bundle": "dev",
        "home": os.path.realpath(runs.home()),
        "protocol": 1,
    }


def test_runs_are_told_as_ps_tells_them(service: Node, run: RunDir) -> None:
    make_run("broken").journal.write_text("nonsense\n")
    listed = ask(service.socket, lambda calls: calls.get("/runs"))["runs"]
    told = json.loads(called(service.socket, "ps", "--all", "--json").out)

    assert [one["run"] for one in listed] == ["broken", "digits"]
    assert [one["state"] for one in listed] == [one["state"] for one in told] == ["unreadable", "queued"]
    assert {key: value for key, value in listed[1].items() if not key.endswith("_s")} == {
        key: value for key, value in told[1].items() if not key.endswith("_s")
    }


def test_status_journal_and_output_of_a_run(service: Node, own_home: Path) -> None:
    text = random.Random(0).randbytes(3 << 20)
    made = make_run(
        "digits", journal=(events.AttemptStarted(t=1.0, attempt=1, pid=1, start_ticks=1, log_offset=0),), output=text
    )

    status = ask(service.socket, lambda calls: calls.get("/runs/digits/status"))
    page = ask(service.socket, lambda calls: calls.get("/runs/digits/journal"))
    rest = ask(service.socket, lambda calls: calls.get(f"/runs/digits/journal?from={page['next']}"))
    got, at = b"", 0
    while at < len(text):
        headers, piece = ask(service.socket, lambda calls, at=at: calls.read(f"/runs/digits/output?from={at}"))
        assert (int(headers["x-from"]), int(headers["x-next"])) == (at, at + len(piece))
        got, at = got + piece, int(headers["x-next"])

    assert (status["run"], status["dir"]) == ("digits", str(made.root))
    assert [event["event"] for event in page["events"]] == ["run_created", "attempt_started"]
    assert (page["next"], rest["events"]) == (made.journal.stat().st_size, [])
    assert got == text


def test_output_that_was_rotated_away_is_left_out(service: Node, run: RunDir) -> None:
    run.output.touch()
    subprocess.run(["truncate", "-s", "64M", str(run.output)], check=True)
    with run.output.open("ab") as file:
        file.write(b"the rest\n")

    headers, piece = ask(service.socket, lambda calls: calls.read("/runs/digits/output?from=10"))

    assert (int(headers["x-from"]), piece) == (64 << 20, b"the rest\n")


@pytest.mark.parametrize(
    "path", ["/runs/digitz/status", "/runs/..%2F..%2Fetc/status", "/runs//status", "/runs/digits/secrets", "/nothing"]
)
def test_what_is_not_here_is_told(service: Node, run: RunDir, path: str) -> None:
    with pytest.raises(UsageError):
        ask(service.socket, lambda calls: calls.get(path))
    assert b" 404 " in raw(service.socket, f"GET {path} HTTP/1.1\r\nHost: n\r\n\r\n".encode()).split(b"\r\n")[0]


def test_a_supervisor_that_hangs_holds_up_one_answer_alone(service: Node, run: RunDir) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(make_runtime(run) / "control.sock"))
        deaf.listen()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, service.socket, lambda calls: calls.get("/runs/digits/status"))
            with deaf.accept()[0]:
                assert ask(service.socket, lambda calls: calls.get("/ping"))["ok"]
                assert not waiting.done()
                with pytest.raises(HoldfastError, match="did not answer within 5 s"):
                    waiting.result(60)


def test_only_its_user_can_reach_it(service: Node) -> None:
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(service.socket.parent.stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_to_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runs, "runtime_home", lambda: tmp_path)
    tmp_path.chmod(0o777)

    with pytest.raises(HoldfastError, match="belongs to another user"):
        address.make_folder()


def test_it_has_one_thread_and_nothing_of_its_caller(service: Node) -> None:
    proc = Path(f"/proc/{service.who.pid}")

    assert len(list((proc / "task").iterdir())) == 1
    assert os.getsid(service.who.pid) == service.who.pid
    assert [str((proc / "fd" / number).readlink()) for number in "01"] == [os.devnull] * 2
    assert (proc / "cwd").readlink() == Path("/")


def test_many_at_once_start_one(own_home: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        assert [future.result() for future in [pool.submit(start) for _ in range(3)]] == [0, 0, 0]
    with node() as service:
        mine = f"HOLDFAST_HOME={os.environ['HOLDFAST_HOME']}".encode()
        found = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and b"service" in _read(entry / "cmdline") and mine in _read(entry / "environ")
        ]
        assert found == [service.who.pid]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_it_leaves_when_nobody_needs_it_and_another_can_come(own_home: Path) -> None:
    with node("--idle", "2") as service:
        until(lambda: not process.alive(service.who), what="the end of an idle service")
        assert list(service.socket.parent.glob(f"{service.socket.stem}.*")) == []
        assert_another_one_sweeps(service)


def assert_another_one_sweeps(service: Node) -> None:
    """What killed ones have left goes a day later, when another one starts."""
    folder = service.socket.parent
    old, young, live = (f"service-{name}{os.getpid():07x}-dev" for name in "abc")
    try:
        for name in (old, young, live):
            for suffix in (".lock", ".log", ".sock"):
                (folder / f"{name}{suffix}").touch()
        for name in (old, live):
            os.utime(folder / f"{name}.lock", (0, 0))
        lock = fsio.lock_file(folder / f"{live}.lock")
        with node() as other:
            assert other.who != service.who
            until(lambda: not list(folder.glob(f"{old}.*")))
        lock.close()
        assert [len(list(folder.glob(f"{name}.*"))) for name in (young, live)] == [3, 3]
    finally:
        for left in folder.glob(f"service-?{os.getpid():07x}-dev.*"):
            left.unlink()


def test_one_whose_starter_ignores_the_end_of_children_hears_of_theirs(own_home: Path) -> None:
    """As some do that are the first process of a container; it is handed down."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert start() == 0
    finally:
        signal.signal(signal.SIGCHLD, before)
    with node() as service:
        assert called(service.socket, "ps").code == 0


def test_one_that_was_killed_is_replaced(own_service: Node) -> None:
    own_service.kill(signal.SIGKILL)
    assert own_service.socket.exists()

    with node() as other:
        assert other.who != own_service.who
    own_service.socket.with_suffix(".log").touch()


def test_an_order_that_is_wrong_is_refused(service: Node) -> None:
    for body in (
        b"",
        b"[]",
        b"nonsense",
        b"[" * 100_000,
        b'{"argv":["ps"]}',
        b'{"call":"x","argv":["ps"]}',
        b'{"call":"%s","argv":"ps"}' % (b"0" * 32),
        b'{"call":"%s","argv":["a\\u0000b"]}' % (b"0" * 32),
        b'{"call":"%s","argv":["\\ud800"]}' % (b"0" * 32),
        b'{"call":"%s","argv":["ps"],"env":{"A=B":"c"}}' % (b"0" * 32),
        b'{"call":"%s","argv":["ps"],"env":{"A":1}}' % (b"0" * 32),
        b'{"call":"%s","argv":["ps"],"columns":-1}' % (b"0" * 32),
        b'{"call":"%s","argv":["ps"],"terminals":[3]}' % (b"0" * 32),
        b'{"call":"%s","argv":["ps"],"cwd":[]}' % (b"0" * 32),
        b'{"call":"%s","argv":["ps"],"age_s":"x"}' % (b"0" * 32),
    ):
        head = b"POST /calls HTTP/1.1\r\nHost: n\r\nUpgrade: holdfast-call\r\nConnection: Upgrade\r\n"
        answer = raw(service.socket, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert answer.startswith(b"HTTP/1.1 400 "), (body[:80], answer)
    until(lambda: service.children() == [])


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: n\r\n\r\n", b"431"),
        (b"POST /calls HTTP/1.1\r\nHost: n\r\nContent-Length: 99999999\r\n\r\n" + bytes(2 << 20), b"413"),
        (b"GET //[ HTTP/1.1\r\nHost: n\r\n\r\n", b"400"),
        (b"DELETE /runs HTTP/1.1\r\nHost: n\r\n\r\n", b"405"),
        (b"GET /calls/0123?out=0 HTTP/1.1\r\nHost: n\r\n\r\n", b"404"),
        (b"GET /runs/digits/output?from=-1 HTTP/1.1\r\nHost: n\r\n\r\n", b"400"),
        (b"GET /runs/digits/output?from=" + b"9" * 30 + b" HTTP/1.1\r\nHost: n\r\n\r\n", b"400"),
    ],
)
def test_a_request_that_is_wrong_is_refused(service: Node, run: RunDir, sent: bytes, code: bytes) -> None:
    assert raw(service.socket, sent).split(b" ")[1] == code
    assert ask(service.socket, lambda calls: calls.get("/ping"))["ok"]


def test_more_connections_than_it_takes_are_told(own_service: Node) -> None:
    with contextlib.ExitStack() as stack:
        every = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(MOST_CONNECTIONS + 1)]
        for each in every:
            each.connect(str(own_service.socket))  # waits where too many wait already
        every[-1].settimeout(20)
        every[-1].sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert every[-1].recv(1 << 16).startswith(b"HTTP/1.1 503 ")


def test_more_verbs_than_it_runs_are_told_and_begun_later(own_service: Node, run: RunDir) -> None:
    def begun(number: int, *, then: bytes = b"") -> bytes:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(own_service.socket))
            link.sendall(_order(b"%032x" % number) + then)
            return link.recv(1 << 16).split(b" ")[1]

    assert {begun(number) for number in range(MOST_CALLS)} == {b"101"}
    assert begun(MOST_CALLS) == b"503"
    assert begun(0, then=Frame(Kind.LEAVE, b"").encoded()) == b"101"  # which runs already
    until(lambda: begun(MOST_CALLS) == b"101", what="the place of a call that was left")


def test_without_descriptors_no_verb_is_begun_and_nothing_is_kept(own_service: Node, run: RunDir) -> None:
    """One more at a time, until they are enough."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(20)
        link.connect(str(own_service.socket))
        link.sendall(b"GET /ping HTTP/1.1\r\nHost: n\r\n\r\n")
        link.recv(1 << 16)
        before, answers = sorted(own_service.descriptors()), list[bytes]()
        _, hard = resource.prlimit(own_service.who.pid, resource.RLIMIT_NOFILE)
        for more in range(20):
            resource.prlimit(own_service.who.pid, resource.RLIMIT_NOFILE, (len(before) + more, hard))
            link.sendall(b"GET /runs HTTP/1.1\r\nHost: n\r\n\r\n")
            answers.append(link.recv(1 << 16))
            until(lambda: not own_service.children() and sorted(own_service.descriptors()) == before, 20)
            link.sendall(_order(b"e" * 32))
            begun = link.recv(1 << 16)
            if begun.startswith(b"HTTP/1.1 101 "):
                break
            assert b"no verb can be started: Too many open files" in begun
            assert (own_service.children(), sorted(own_service.descriptors())) == ([], before)
    assert b"/runs cannot be answered: Too many open files" in answers[0]
    assert b'"run": "digits"' in answers[-1]


def _order(number: bytes) -> bytes:
    """A verb that lasts."""
    body = b'{"call":"%s","argv":["shell","digits","--","sleep","60"]}' % number
    head = b"POST /calls HTTP/1.1\r\nHost: n\r\nUpgrade: holdfast-call\r\nConnection: Upgrade\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_frames_that_are_none_end_the_connection_and_not_the_verb(own_service: Node, run: RunDir) -> None:
    chance = random.Random(7)
    body = b'{"call":"%s","argv":["shell","digits","--","cat"]}' % (b"c" * 32)
    head = b"POST /calls HTTP/1.1\r\nHost: n\r\nUpgrade: holdfast-call\r\nConnection: Upgrade\r\n"
    begun = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for nonsense in (
        b"\x02\x00\x00\x00\x08" + b"\xff" * 8,  # more acknowledged than was sent
        b"\x01\x00\x00\x00\x02\x01x",  # output to the node
        b"\x03\x00\x00\x00\x05\x40\x00\x00\x00\x09",  # a signal out of turn
        b"\x03\x00\x00\x00\x05\xff\x00\x00\x00\x00",  # no signal
        *(b"\x07" + chance.randbytes(200) for _ in range(20)),
    ):
        assert raw(own_service.socket, begun + nonsense, ends=False).startswith(b"HTTP/1.1 101 ")
        assert len(own_service.children()) == 1
    flood = b"".join(b"\x00\x00\x01\x00\x00" + bytes(1 << 16) for _ in range(200))
    deaf = b'{"call":"%s","argv":["shell","digits","--","sleep","60"]}' % (b"d" * 32)
    raw(own_service.socket, head + b"Content-Length: %d\r\n\r\n" % len(deaf) + deaf + flood, ends=False)
    assert ask(own_service.socket, lambda calls: calls.get("/ping"))["ok"]
    assert own_service.memory_bytes() < 200 << 20


def test_a_slow_request_does_not_keep_others_waiting(service: Node) -> None:
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(service.socket))
        slow.sendall(b"GET /pi")
        assert ask(service.socket, lambda calls: calls.get("/ping"))["ok"]


def test_questions_share_a_connection_and_outlive_it(service: Node) -> None:
    async def main() -> int:
        from holdfast.service.client import Calls
        from holdfast.service.streams import Stream, unix

        made: list[Stream] = []

        async def connect() -> Stream:
            made.append(await unix(service.socket)())
            return made[-1]

        calls = Calls(connect)
        for _ in range(5):
            await calls.get("/ping")
        assert len(made) == 1
        await made[0].close()
        await calls.get("/ping")
        await calls.close()
        return len(made)

    assert asyncio.run(main()) == 2


def test_a_command_line_that_is_wrong_is_told() -> None:
    for argv in (["--idle"], ["--idle", "soon"], ["now"]):
        told = subprocess.run(
            [sys.executable, "-m", "holdfast", "node", "service", *argv], capture_output=True, text=True, check=False
        )
        assert (told.returncode, told.stderr.startswith("error: ")) == (2, True)


def test_one_whose_files_were_removed_leaves_its_successor_alone(own_service: Node) -> None:
    for left in own_service.socket.parent.glob(f"{own_service.socket.stem}.*"):
        left.unlink()
    with node() as other:
        own_service.kill(signal.SIGTERM)

        assert ask(own_service.socket, lambda calls: calls.get("/ping"))["pid"] == other.who.pid
    own_service.socket.with_suffix(".log").touch()
