"""A master that dies again and again under a forward, streams and a sync; a fan-out that a real fail2ban watches."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.link import remote
from holdfast.link.client import Links
from holdfast.link.mux import End
from holdfast.workspace.ignore import STAGING
from tests.children import ended
from tests.labs import gate
from tests.labs import sshd as lab
from tests.labs.fail2ban import fail2ban
from tests.labs.links import kill_master, no_slot_is_taken, own_links, processes
from tests.unit.link.test_forwards import serving
from tests.unit.sync.ends import held, tree
from tests.waiting import until

pytestmark = pytest.mark.e2e
SENT = os.urandom(1 << 20) * 8
MIB = 1 << 20
some_and_many = pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.soak)])


@pytest.fixture
def node(tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[lab.Sshd, Path]]:
    """A server, and the home there."""
    with lab.person() as (user, home), lab.sshd(tmp_path / "sshd", user, home) as running:
        monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(running.config))
        with own_links(tmp_path / "home", monkeypatch, fetched):
            yield running, home


@pytest.fixture
def server(node: tuple[lab.Sshd, Path]) -> lab.Sshd:
    return node[0]


class Loads:
    """Connections through a port, one after the other: how many were whole, and how many broke."""

    def __init__(self, port: int) -> None:
        self.port, self.whole, self.broken, self.wrong = port, 0, 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            got = bytearray()
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=30) as here:
                    while part := here.recv(1 << 18):
                        got += part
            except ConnectionError:
                self.broken += 1
                self.wrong += not SENT.startswith(bytes(got))
            else:
                self.whole += 1
                self.wrong += got != SENT

    def __enter__(self) -> Loads:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def streams(count: int) -> Iterator[None]:
    """Commands that write without end, started anew whenever they break."""
    over = threading.Event()
    children: list[subprocess.Popen[bytes]] = []

    def run() -> None:
        argv = [sys.executable, "-m", "holdfast", "exec", "--on", "node", "--", "exec yes holdfast-stream"]
        while not over.is_set():
            child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            children.append(child)
            child.wait()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            while thread.is_alive():  # one may just have begun another
                for child in children:
                    child.terminate()
                thread.join(0.1)


@some_and_many
def test_nothing_is_leaked_by_masters_that_are_killed(node: tuple[lab.Sshd, Path], kills: int) -> None:
    server, home = node
    with Links() as links, serving(lambda peer: peer.sendall(SENT)) as there:
        up = links.up("node")
        port = links.forward(up.key, 0, End(port=there))
        with Loads(port) as loads, streams(2):
            for _ in range(kills):
                whole = loads.whole
                until(lambda whole=whole: loads.whole > whole)  # type: ignore[misc]
                opened_s = links.every()[0]["opened_s"]
                kill_master()
                until(lambda before_s=opened_s: is_up_since(links, before_s + 0.05))  # type: ignore[misc]
        assert [one["listen"] for one in links.forwards()] == [port]
    assert (loads.wrong, loads.whole >= kills, loads.broken > 0) == (0, True, True)
    until(lambda: not processes(home, "^yes holdfast-stream"))
    no_slot_is_taken(server)


def is_up_since(links: Links, then_s: float) -> bool:
    """Whether there is a connection that was opened later."""
    (link,) = links.every()
    return bool(link["state"] == "up" and link["opened_s"] > then_s)


@some_and_many
def test_a_folder_is_brought_whole_though_masters_are_killed(
    node: tuple[lab.Sshd, Path], tmp_path: Path, kills: int
) -> None:
    """Files of 16 MiB, which go on at their byte, and 1000 small ones. No connection carries more than two files."""
    server, home = node
    closed = tmp_path / "closed"
    bring_ours()  # which no connection of those below carries any more
    server.config.write_text(server.config.read_text() + gate.lines(28 * MIB, closed))
    closed.touch()
    there, source = home / "there", tree(tmp_path / "source")
    tree(source, **{f"large__{number}": os.urandom(MIB) * 16 for number in range(2 * kills)})
    tree(source, **{f"small__{number}": f"{number}" * 100 for number in range(1000)})
    argv = [sys.executable, "-m", "holdfast", "sync", str(source), "node:there"]
    with ended(subprocess.Popen(argv, stderr=subprocess.PIPE)) as bringing:
        for number in range(kills):
            until(lambda number=number: size_bytes(there) > (number + 1) * 24 * MIB, 60)  # type: ignore[misc]
            kill_master()
        closed.unlink()
        _, said = bringing.communicate(timeout=100)

    assert (bringing.returncode, said.count(b"trying again")) == (0, kills), said
    assert held(there) == held(source)
    until(lambda: not processes(home, "holdfast node receive"))
    no_slot_is_taken(server)


def bring_ours() -> None:
    """To the node: a bundle and its service. The link is another one afterwards."""
    subprocess.run([sys.executable, "-m", "holdfast", "ps", "--on", "node"], capture_output=True, check=True)
    with Links() as links:
        for link in links.every():
            links.drop(link["key"])


def size_bytes(folder: Path) -> int:
    """Of the large files in it, also of those that have not come whole; 0 when one is just renamed."""
    with contextlib.suppress(FileNotFoundError):
        return sum(path.stat().st_size for part in ("large", STAGING) for path in (folder / part).glob("*"))
    return 0


def test_fifty_names_of_one_host_are_one_login_and_nobody_is_banned(server: lab.Sshd, tmp_path: Path) -> None:
    node = server.config.read_text()
    names = [f"gpu-{number}" for number in range(50)]
    server.config.write_text("\n".join(node.replace("Host node", f"Host {name}") for name in names))
    with fail2ban(tmp_path / "fail2ban", server.folder / "sshd.log") as jail:
        done = list(remote.everywhere(names, "echo $$", config=str(server.config)))
        assert [one.status for one in done] == [0] * 50
        assert server.log.count("Accepted publickey") == 1
        with Links() as links:
            (link,) = links.every()
            links.drop(link["key"])

        server.allowed.write_text("")
        refused = list(remote.everywhere(names, "true", config=str(server.config)))
        assert {one.status for one in refused} == {remote.UNREACHED}
        assert all("takes none of our keys" in one.error for one in refused)
        assert server.log.count("Failed publickey") == 1
        jail.catch_up("192.0.2.1")
        assert jail.banned == ["192.0.2.1"]
        for _ in range(6):  # and yet it watches: so many by hand are too many
            subprocess.run(
                ["ssh", "-F", str(server.config), "-o", "BatchMode=yes", "gpu-0", "true"], capture_output=True
            )
        until(lambda: "127.0.0.1" in jail.banned)
