"""Local ports that lead to a host, through a real agent, ssh and sshd."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast import process
from holdfast.commands import forward as verb
from holdfast.errors import UsageError
from holdfast.link import forwards
from holdfast.link.client import Links, Up
from holdfast.link.hosts import Settings
from holdfast.link.mux import End
from tests.labs import sshd as lab
from tests.labs.links import holder, master_of
from tests.labs.servers import free_port
from tests.unit.commands.terminal import Terminal
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shared_agent")]


@pytest.fixture
def links() -> Iterator[Links]:
    with Links() as mine:
        until(lambda: not mine.forwards())  # those of the test before end when the agent hears that it has left
        yield mine


@pytest.fixture
def up(links: Links, server: lab.Sshd) -> Up:
    return links.up("node", config=str(server.config))


@contextlib.contextmanager
def serving(
    answer: Callable[[socket.socket], object], address: str | tuple[str, int] = ("127.0.0.1", 0)
) -> Iterator[int]:
    """A server there, which is here: every connection is given to `answer`."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    threading.Thread(target=one, args=(peer,)).start()

        def one(peer: socket.socket) -> None:
            with peer, contextlib.suppress(OSError):
                answer(peer)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield 0 if isinstance(address, str) else listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def back(peer: socket.socket) -> None:
    """All that comes, as soon as all of it is there."""
    peer.sendall(everything(peer))


def everything(peer: socket.socket) -> bytes:
    parts = []
    while part := peer.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def through(port: int, sent: bytes = b"hello") -> bytes:
    """What comes back from `back`."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as here:
        here.sendall(sent)
        here.shutdown(socket.SHUT_WR)
        return everything(here)


def test_bytes_are_the_same_both_ways(links: Links, up: Up) -> None:
    sent = os.urandom(5_000_000)
    with serving(back) as there:
        port = links.forward(up.key, 0, End(port=there))

        assert hashlib.sha256(through(port, sent)).digest() == hashlib.sha256(sent).digest()
        assert through(port) == b"hello"


def test_a_server_that_closes_first_is_seen_to(links: Links, up: Up) -> None:
    with serving(lambda peer: peer.sendall(b"bye")) as there:
        port = links.forward(up.key, 0, End(port=there))

        with socket.create_connection(("127.0.0.1", port), timeout=20) as here:
            assert everything(here) == b"bye"


def test_a_unix_socket_there_is_reached(links: Links, up: Up) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, serving(back, f"{folder}/s"):
        Path(folder).chmod(0o755)
        Path(folder, "s").chmod(0o666)

        assert through(links.forward(up.key, 0, End(path=f"{folder}/s"))) == b"hello"


def test_where_nobody_listens_the_connection_breaks_and_the_reason_is_told(links: Links, up: Up) -> None:
    port = links.forward(up.key, 0, End(port=free_port()))

    with pytest.raises(ConnectionResetError):
        through(port)
    (told,) = links.forwards()
    assert "opened no channel" in told["why"]
    assert (told["alias"], told["state"], told["kept"]) == ("node", "up", False)


def test_a_host_that_forbids_it_is_told(links: Links, tmp_path: Path) -> None:
    options = {"AllowTcpForwarding": "no"}
    with lab.person() as (user, home), lab.sshd(tmp_path / "sshd", user, home, options=options) as strict:
        up = links.up("node", config=str(strict.config), said=Settings(persist_s=0.0))
        port = links.forward(up.key, 0, End(port=1))
        with pytest.raises(ConnectionResetError):
            through(port)
        assert links.forwards()[0]["why"] == "the server opened no channel: it is not allowed there"


def test_a_port_that_is_taken_is_told(links: Links, up: Up) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot be had"):
        links.forward(up.key, taken.getsockname()[1], End(port=1))
    assert links.forwards() == []


def test_more_connections_than_there_is_room_for_wait_for_their_turn(links: Links, up: Up) -> None:
    with serving(back) as there, contextlib.ExitStack() as idle:
        port = links.forward(up.key, 0, End(port=there))
        for _ in range(forwards.MOST):
            idle.enter_context(socket.create_connection(("127.0.0.1", port)))
        with socket.create_connection(("127.0.0.1", port), timeout=20) as last:
            last.sendall(b"hello")
            last.shutdown(socket.SHUT_WR)
            until(lambda: links.forwards()[0]["connections"] == forwards.MOST)
            assert not select.select([last], [], [], 0.2)[0]
            idle.close()
            assert everything(last) == b"hello"


def test_a_forward_ends_with_its_client_or_when_told(links: Links, up: Up) -> None:
    with Links() as other:
        leaving = other.forward(up.key, 0, End(port=1))
        kept = other.forward(up.key, 0, End(port=1), keep=True)
    until(lambda: [one["listen"] for one in links.forwards()] == [kept])
    with socket.create_server(("127.0.0.1", leaving)):
        pass
    links.unforward(kept)
    assert links.forwards() == []


def test_the_link_stays_for_a_kept_forward_alone(server: lab.Sshd) -> None:
    with Links() as leaving:
        key = leaving.up("node", config=str(server.config), said=Settings(persist_s=0.0)).key
        kept = leaving.forward(key, 0, End(port=1), keep=True)
    with Links() as links:
        with pytest.raises(AssertionError):
            until(lambda: links.every() == [], within_s=2.5)
        links.unforward(kept)
        until(lambda: links.every() == [])


def test_the_port_is_ours_while_the_link_is_away_and_who_connects_waits(links: Links, up: Up, server: lab.Sshd) -> None:
    with serving(back) as there:
        port = links.forward(up.key, 0, End(port=there))
        os.kill(server.pid, signal.SIGSTOP)  # who connects anew is not answered
        try:
            os.kill(master_of(up.path), signal.SIGKILL)
            until(lambda: links.forwards()[0]["state"] != "up")
            with pytest.raises(OSError, match="in use"):
                socket.create_server(("127.0.0.1", port))
            with socket.create_connection(("127.0.0.1", port), timeout=30) as here:
                here.sendall(b"waited")
                here.shutdown(socket.SHUT_WR)
                until(lambda: links.forwards()[0]["connections"] == 1)
                os.kill(server.pid, signal.SIGCONT)
                assert everything(here) == b"waited"
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_a_link_that_does_not_come_back_costs_a_bounded_time(links: Links, up: Up, server: lab.Sshd) -> None:
    keys = server.allowed.read_text()
    port = links.forward(up.key, 0, End(port=1))
    try:
        server.allowed.write_text("")
        os.kill(master_of(up.path), signal.SIGKILL)
        until(lambda: links.forwards()[0]["state"] == "needs-authentication")
        with pytest.raises(ConnectionResetError):
            through(port)
        assert "takes none of our keys" in links.forwards()[0]["why"]
    finally:
        server.allowed.write_text(keys)


@pytest.mark.parametrize(
    ("spec", "listen", "end"),
    [
        ("8888", 8888, "localhost:8888"),
        ("8080:80", 8080, "localhost:80"),
        ("8080:db:80", 8080, "db:80"),
        ("8080:[::1]:80", 8080, "::1:80"),
        ("0:80", 0, "localhost:80"),
        ("0:/run/s", 0, "/run/s"),
    ],
)
def test_what_a_port_means(spec: str, listen: int, end: str) -> None:
    assert (verb.parse(spec).listen, str(verb.parse(spec).end)) == (listen, end)


@pytest.mark.parametrize("spec", ["", "http", "8080:", "0", "70000", "-1", "80:0", "1:2:x"])
def test_what_is_no_port_is_told(spec: str) -> None:
    with pytest.raises(UsageError, match="port"):
        verb.parse(spec)


def holdfast(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "holdfast", *words], capture_output=True, text=True, timeout=60)


def test_the_verb_stays_tells_and_survives_master_and_agent() -> None:
    with serving(back) as there:
        seen = Terminal("forward", "node", f"0:127.0.0.1:{there}")
        seen.await_text(b"leads to")
        port = int(seen.shown.split(b"127.0.0.1:")[1].split()[0])
        assert through(port) == b"hello"
        with Links() as links:
            os.kill(master_of(links.every()[0]["path"]), signal.SIGKILL)
        seen.await_text(b"up again after")
        assert through(port) == b"hello"
        who = holder()
        assert who is not None
        process.send_signal(who, signal.SIGKILL)
        seen.await_text(b"it is started again")
        until(lambda: holder() not in (who, None))
        assert until(lambda: quietly(port)) == b"hello"
        seen.press(b"\x03")
        assert seen.exit_code() == 130
        assert b"the ports are closed" in seen.shown
        until(lambda: is_refused(port))


def is_refused(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_the_verb_says_why_a_connection_breaks() -> None:
    seen = Terminal("forward", "node", f"0:{free_port()}")
    seen.await_text(b"leads to")
    port = int(seen.shown.split(b"127.0.0.1:")[1].split()[0])
    with pytest.raises(ConnectionResetError):
        through(port)
    seen.await_text(b"127.0.0.1:%d: the server opened no channel" % port)
    seen.press(b"\x03")
    assert seen.exit_code() == 130


def quietly(port: int) -> bytes:
    """As `through`; nothing where nobody listens yet."""
    with contextlib.suppress(OSError):
        return through(port)
    return b""


def test_what_is_left_to_the_agent_is_listed_and_stopped() -> None:
    with serving(back) as there:
        begun = holdfast("forward", "-d", "--json", "node", f"0:127.0.0.1:{there}")
        port = json.loads(begun.stdout)[0]["listen"]
        assert through(port) == b"hello"
        listed = holdfast("forward", "--ls").stdout
        assert f"127.0.0.1:{port}" in listed
        assert "until --stop" in listed
        assert holdfast("forward", "--stop", "node", str(port)).returncode == 0
        again = holdfast("forward", "--stop", "node")
        assert (again.returncode, "nothing like that" in again.stderr) == (2, True)
        with pytest.raises(ConnectionRefusedError):
            through(port)


def test_a_terminal_over_the_connection_that_is_there(server: lab.Sshd, up: Up) -> None:
    logins = server.log.count("Accepted publickey")
    seen = Terminal("ssh", "node", "--", "tty; read line; echo got $line; exit 5")
    seen.await_text(b"/dev/pts/")
    seen.press(b"word\r")
    assert seen.exit_code() == 5
    assert b"got word" in seen.shown
    assert server.log.count("Accepted publickey") == logins


@pytest.mark.usefixtures("own_agent")
def test_a_terminal_at_a_host_that_is_not_shared(
    server: lab.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "ssh" / "config"
    own.parent.mkdir()
    own.write_text(server.config.read_text())
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(own))
    assert holdfast("host", "config", "node", "--multiplex", "off").returncode == 0
    logins = server.log.count("Accepted publickey")
    both = [Terminal("ssh", "node", "--", "echo ready; read line; exit 5") for _ in range(2)]
    for seen in both:
        seen.await_text(b"ready")
    assert server.log.count("Accepted publickey") == logins + 2
    for seen in both:
        seen.press(b"\r")
        assert seen.exit_code() == 5


def test_ctrl_c_is_the_remote_commands_own(up: Up) -> None:
    seen = Terminal("ssh", "node", "--", "trap 'echo caught; exit 3' INT; echo ready; sleep 60 & wait")
    seen.await_text(b"ready")
    seen.press(b"\x03")
    assert seen.exit_code() == 3
    assert b"caught" in seen.shown
