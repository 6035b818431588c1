"""A run on a machine whose network goes without a word, or whose server ends every session after some seconds."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.link import hosts, remote
from holdfast.link.client import Links, held
from holdfast.link.mux import End
from tests.e2e.test_remote import Laptop, digest, grown
from tests.labs import netns
from tests.labs import sshd as lab
from tests.labs.links import own_links
from tests.unit.link.test_forwards import serving
from tests.waiting import until

pytestmark = pytest.mark.e2e

STEPS_A_SECOND = 100
SCRIPT = """\
import os, sys, time
stop, number, began_s = os.environ["STOP"], 0, time.monotonic()
while not os.path.exists(stop):
    print(f"step {number} at {time.time():.3f} " + "x" * 10_000, flush=True)
    number += 1
    time.sleep(max(0.0, began_s + number / 100 - time.monotonic()))
print("last", flush=True)
sys.exit(int(os.environ.get("EXIT", "0")))
"""

PARTS = """\
import os, pathlib, signal, sys, time
over, kept = [], pathlib.Path(os.environ["HOLDFAST_RUN_DIR"], "number")
signal.signal(signal.SIGTERM, lambda *_: over.append(True))
number = int(kept.read_text()) if kept.exists() else 0
print(f"begins at {number}", flush=True)
while not os.path.exists(os.environ["STOP"]):
    print(f"step {number} " + "x" * 10_000, flush=True)
    number += 1
    kept.write_text(str(number))
    if over:
        sys.exit(75)
    time.sleep(0.02)
print("last", flush=True)
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[netns.Network]:
    with netns.network(tmp_path_factory.mktemp("network")) as made:
        yield made


@pytest.fixture(scope="module")
def server(network: netns.Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[lab.Sshd, Path]]:
    with (
        lab.person() as (user, home),
        netns.sshd(network, tmp_path_factory.mktemp("sshd"), user, home) as running,
    ):
        yield running, home


@pytest.fixture(scope="module")
def laptop(
    tmp_path_factory: pytest.TempPathFactory, network: netns.Network, server: tuple[lab.Sshd, Path], fetched: Path
) -> Iterator[Laptop]:
    """Its agent is in the client's namespace, and is spoken to from outside."""
    root = tmp_path_factory.mktemp("laptop")
    (root / "project").mkdir()
    for name, script in (("train.py", SCRIPT), ("parts.py", PARTS)):
        (root / "project" / name).write_text(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_SSH_CONFIG", str(server[0].config))
        with own_links(root / "home", patch, fetched), contextlib.ExitStack() as stack:
            with netns.entered(network.client):
                stack.enter_context(Links())
            yield Laptop(root, server[0].config, server[1])


def state() -> str:
    """Of the link to `node`."""
    return next(str(link["state"]) for link in held() if link["alias"] == "node")


def key_of_link() -> str:
    """To `node`."""
    return next(str(link["key"]) for link in held() if link["alias"] == "node")


def step_times(output: Path) -> list[float]:
    """When each step of the run was, by its own records."""
    return [float(found) for found in re.findall(rb"^step \d+ at ([\d.]+) ", output.read_bytes(), re.MULTILINE)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "cut_s", [10, pytest.param(60, marks=pytest.mark.soak), pytest.param(300, marks=pytest.mark.soak)]
)
def test_a_run_does_not_notice_a_network_that_is_silent(
    laptop: Laptop, network: netns.Network, tmp_path: Path, cut_s: int
) -> None:
    """It prints 1 MB/s. Asked after 5 s of silence, suspect 1.5 s later, dead after 3 s more; ssh itself needs 45 s."""
    run = laptop.start(f"silent-{cut_s}")
    output = laptop.output(f"silent-{cut_s}")
    with laptop.following(tmp_path, "logs", "-f", run) as follower:
        grown(tmp_path / "out")
        key, began_s = key_of_link(), time.time()
        with network.is_cut(), Links() as links:
            assert links.changed(key, "up", within_s=30)["state"] == "suspect"
            asked_s = time.time()
            done = laptop.holdfast("status", run, "--timeout", "2s")
            assert (done.returncode, time.time() - asked_s < 2 + 20) == (10, True), done.stderr
            assert re.search(r"node cannot be reached: .*(suspect|dead|connecting|nothing came for)", done.stderr)
            until(lambda: state() in ("dead", "down", "connecting"), within_s=30)
            most = 0.8 * STEPS_A_SECOND * cut_s  # far more than fits between it and the network
            until(lambda: sum(at_s > began_s for at_s in step_times(output)) > most, 3 * cut_s + 30, every_s=0.5)
        grown(tmp_path / "out")
        laptop.stop(f"silent-{cut_s}")
        assert follower.wait(120) == 0

    assert digest(tmp_path / "out") == digest(output)


@contextlib.contextmanager
def ending_sessions(server: lab.Sshd, after_s: float) -> Iterator[list[int]]:
    """Each connection of the server ends when it is so old; the pids of those that have."""
    over, ended = threading.Event(), list[int]()
    seen_s: dict[int, float] = {}

    def end() -> None:
        while not over.wait(0.05):
            now_s = time.monotonic()
            for pid in lab.children(server.pid):
                if now_s - seen_s.setdefault(pid, now_s) > after_s and pid not in ended:
                    lab.kill_connection(pid)
                    ended.append(pid)

    thread = threading.Thread(target=end)
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        thread.join()


def test_a_server_that_ends_every_session_is_borne(
    laptop: Laptop, network: netns.Network, server: tuple[lab.Sshd, Path], tmp_path: Path
) -> None:
    def through(port: int) -> bytes:
        try:
            with netns.entered(network.client), socket.create_connection(("127.0.0.1", port), timeout=20) as here:
                return here.recv(9)
        except ConnectionError:
            return b""

    run = laptop.start("short", "--set", "restart.policy=no", EXIT="7")
    for name in ("logs", "wait"):
        (tmp_path / name).mkdir()
    with contextlib.ExitStack() as stack:
        with netns.entered(network.server):
            there = stack.enter_context(serving(lambda peer: peer.sendall(b"bye")))
        links = stack.enter_context(Links())
        port = links.forward(links.up("node").key, 0, End(port=there))
        ended = stack.enter_context(ending_sessions(server[0], 2.0))
        follower = stack.enter_context(laptop.following(tmp_path / "logs", "logs", "-f", run))
        waiting = stack.enter_context(laptop.following(tmp_path / "wait", "wait", run))
        for count in (1, 2):
            until(lambda count=count: len(ended) >= count)  # type: ignore[misc]
            until(lambda: through(port) == b"bye")
        grown(tmp_path / "logs" / "out")
        laptop.stop("short")
        assert (waiting.wait(60), follower.wait(60)) == (7, 0)
        assert [one["listen"] for one in links.forwards()] == [port]

    assert digest(tmp_path / "logs" / "out") == digest(laptop.output("short"))


def test_segments_follow_one_another_where_every_session_is_ended(
    laptop: Laptop, server: tuple[lab.Sshd, Path], tmp_path: Path
) -> None:
    patient = ("--set", "restart.max_no_progress=1000")  # nothing tells what a program without the library has reached
    run = laptop.start("parts", "--set", "segment=1s", *patient, script="parts.py")
    journal = laptop.output("parts").with_name("journal.jsonl")

    def segments() -> int:
        return journal.read_text().count('"event":"segment_over"')

    for name in ("logs", "wait"):
        (tmp_path / name).mkdir()
    with contextlib.ExitStack() as stack:
        ended = stack.enter_context(ending_sessions(server[0], 2.0))
        follower = stack.enter_context(laptop.following(tmp_path / "logs", "logs", "-f", run))
        waiting = stack.enter_context(laptop.following(tmp_path / "wait", "wait", run))
        until(lambda: len(ended) >= 2, 40)
        before = segments()
        until(lambda: segments() >= max(2, before + 1), 40, what=journal.read_text)
        grown(tmp_path / "logs" / "out")
        laptop.stop("parts")
        assert (waiting.wait(60), follower.wait(60)) == (0, 0)

    assert digest(tmp_path / "logs" / "out") == digest(laptop.output("parts"))
    begun = [
        int(found) for found in re.findall(rb"^begins at (\d+)$", laptop.output("parts").read_bytes(), re.MULTILINE)
    ]
    assert len(begun) >= 3
    assert begun == sorted(set(begun))  # each went on where the one before it had left


def test_a_connection_that_is_renewed_in_time_is_ended_by_nobody(laptop: Laptop, server: tuple[lab.Sshd, Path]) -> None:
    """Sessions end after 7 s, and connections are to be 1.5 s old at most; the agent looks each second."""
    hosts.update("node", hosts.Settings(max_age_s=1.5))
    logins, end_s = server[0].log.count("Accepted publickey"), time.monotonic() + 8
    with ending_sessions(server[0], 7.0) as ended:
        while time.monotonic() < end_s:
            (done,) = remote.everywhere(["node"], "sleep 0.2; echo done")
            assert (done.status, done.out, done.error) == (0, b"done\n", "")
        assert ended == []
    hosts.update("node", hosts.Settings(max_age_s=0.0))
    assert server[0].log.count("Accepted publickey") >= logins + 2
