"""Machines whose sshd allows one session at a time, or no channels to sockets: every verb all the same."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.bundle import places
from holdfast.link import mux, remote
from holdfast.link.channels import Connection
from holdfast.link.client import Links, Up, held
from tests.children import ended
from tests.labs import sshd as lab
from tests.labs.links import holder, master_of, own_links, processes
from tests.needs import need
from tests.waiting import until

pytestmark = pytest.mark.e2e

HOSTS = {
    "one": {"MaxSessions": "1"},
    "closed": {"AllowStreamLocalForwarding": "no"},
    "least": {"MaxSessions": "1", "DisableForwarding": "yes"},
}
SCRIPT = """\
import os, sys, time
for number in range(10_000_000):
    print(f"line {number} " + "x" * 1000, flush=True)
    if os.path.exists(sys.argv[1]):
        break
    time.sleep(0.001)
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, lab.Sshd]]:
    """One machine with three servers; each lets the same person in."""
    need(os.geteuid() == 0, "needs root, for a user with an empty home")
    with lab.person() as (user, home), contextlib.ExitStack() as stack:
        found = {
            name: stack.enter_context(lab.sshd(tmp_path_factory.mktemp(name), user, home, options=options))
            for name, options in HOSTS.items()
        }
        keys = [(each.folder / "key.pub").read_text() for each in found.values()]
        found["one"].allowed.write_text("".join(keys))
        yield found


@pytest.fixture(scope="module")
def there(servers: dict[str, lab.Sshd]) -> Path:
    """The home on the machine."""
    return servers["one"].allowed.parent.parent


@pytest.fixture(scope="module", autouse=True)
def laptop(tmp_path_factory: pytest.TempPathFactory, servers: dict[str, lab.Sshd], fetched: Path) -> Iterator[Path]:
    """A folder with a project; what the machine needs is sent once."""
    root = tmp_path_factory.mktemp("laptop")
    blocks = [each.config.read_text().replace("Host node", f"Host {name}") for name, each in servers.items()]
    (root / "config").write_text("\n".join(blocks))
    (root / "project").mkdir()
    (root / "project" / "train.py").write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_SSH_CONFIG", str(root / "config"))
        with own_links(root / "home", patch, fetched):
            yield root


def holdfast(laptop: Path, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast", *words],
        cwd=laptop / "project", input=given, capture_output=True, timeout=100, check=False,
    )  # fmt: skip


def link(host: str) -> dict[str, object]:
    return next(one for one in held() if one["alias"] == host)


@pytest.mark.parametrize("host", HOSTS)
def test_each_verb_works_there(host: str, laptop: Path, there: Path) -> None:
    listed = holdfast(laptop, "ps", "--on", host, "--json")
    words = "cat; echo oops >&2; echo ${HOLDFAST_HOME-}${PYTHONPATH-} >&2; exit 7"
    ran = holdfast(laptop, "exec", "--on", host, "--", words, given=bytes(range(256)) * 4000)
    brought = holdfast(laptop, "sync", ".", f"{host}:of-{host}")
    back = holdfast(laptop, "sync", f"{host}:of-{host}", str(laptop / f"back-{host}"))

    assert (listed.returncode, json.loads(listed.stdout)) == (0, []), listed.stderr
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, bytes(range(256)) * 4000, b"oops\n\n")
    assert (brought.returncode, back.returncode) == (0, 0), (brought.stderr, back.stderr)
    assert (there / f"of-{host}" / "train.py").read_text() == SCRIPT
    assert (laptop / f"back-{host}" / "train.py").read_text() == SCRIPT
    assert link(host)["by_one"]


def test_the_output_of_a_run_is_exact_though_its_masters_are_killed(laptop: Path, there: Path, tmp_path: Path) -> None:
    host, name, flag = "least", "steady", there / "stop"
    made = holdfast(laptop, "run", "--on", host, "-d", "--name", name, "--", "python3", "train.py", str(flag))
    assert (made.returncode, made.stdout) == (0, f"{host}:{name}\n".encode()), made.stderr
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        following = subprocess.Popen(
            [sys.executable, "-m", "holdfast", "logs", "-f", f"{host}:{name}"], stdout=out, stderr=err
        )
    try:
        for victim in (master, lambda _host: ends(there), agent):
            size = (tmp_path / "out").stat().st_size
            until(lambda size=size: (tmp_path / "out").stat().st_size > size + 50_000)  # type: ignore[misc]
            until(lambda victim=victim: is_killed(victim(host)))  # type: ignore[misc]
        flag.touch()
        assert following.wait(60) == 0, (tmp_path / "err").read_bytes()
    finally:
        following.kill()
        following.wait()
    written = (there / ".holdfast" / "runs" / name / "output.log").read_bytes()
    assert (tmp_path / "out").read_bytes() == written
    numbers = [int(number) for number in re.findall(rb"^line (\d+) ", written, re.MULTILINE)]
    assert numbers == list(range(len(numbers)))


def is_killed(pids: list[int]) -> bool:
    """Whether the newest of them was, which may have been about to end anyway."""
    with contextlib.suppress(ProcessLookupError):
        for pid in pids[-1:]:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


def master(host: str) -> list[int]:
    """The process of ssh below the link."""
    return running(f"^ssh .*-N .* {host}$")


def ends(there: Path) -> list[int]:
    """The other ends of sessions."""
    return processes(there, "holdfast node channels$")


def agent(_host: str) -> list[int]:
    who = holder()
    return [] if who is None else [who.pid]


def running(pattern: str) -> list[int]:
    return [int(word) for word in subprocess.run(["pgrep", "-f", pattern], capture_output=True).stdout.split()]


def test_many_at_once_share_the_one_session(servers: dict[str, lab.Sshd], laptop: Path, there: Path) -> None:
    holdfast(laptop, "ps", "--on", "least")
    refusals = servers["least"].log.count("no more sessions")
    (pid,) = until(lambda: len(found := ends(there)) == 1 and found)  # those of connections that were killed are gone
    config = str(laptop / "config")
    with Links() as links:
        up = links.up("least", config=config)
        before = descriptors(up, pid)

        done = list(remote.everywhere(["least"] * 200, "echo $$", config=config, at_once=8))

        assert {(one.status, one.error) for one in done} == {(0, "")}
        assert len({one.out for one in done}) == 200
        assert servers["least"].log.count("no more sessions") == refusals
        asyncio.run(leave_without_a_word(up))
        until(lambda: descriptors(up, pid) == before)
        until(lambda: not Path(f"/proc/{pid}/task/{pid}/children").read_text())


async def leave_without_a_word(up: Up) -> None:
    """As clients that are killed, with commands under way that read and write; one has sent what is no message."""
    for command in ("echo here; cat", "exec yes here"):
        connected = await mux.proxied(up.path)
        channel = await Connection(connected).session()
        await channel.exec(command)
        assert (await channel.read()).startswith(b"here\n")
        connected.shutdown(socket.SHUT_RDWR)
    with await mux.proxied(up.path) as connected:
        connected.send(bytes([255]) * 8)
        assert await asyncio.get_running_loop().sock_recv(connected, 1) == b""


def descriptors(up: Up, end: int) -> tuple[int, int]:
    """How many the agent has open, which answers there, and the node's end of the session."""
    here, there = (len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (master_of(up.path), end))
    return here, there


def test_a_command_that_lasts_keeps_nobody_waiting(laptop: Path) -> None:
    assert holdfast(laptop, "ps", "--on", "one").returncode == 0
    argv = [sys.executable, "-m", "holdfast", "exec", "--on", "one", "--", "echo here; exec sleep 60"]
    with ended(subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)) as lasting:
        assert lasting.stdout is not None
        assert lasting.stdout.readline() == b"here\n"
        assert holdfast(laptop, "exec", "--on", "one", "--", "echo too").stdout == b"too\n"
        lasting.terminate()
        lasting.wait(60)
    holdfast(laptop, "exec", "--on", "one", "--", "pkill -x sleep")


def test_who_comes_first_gets_the_one_session_for_all(laptop: Path) -> None:
    assert holdfast(laptop, "ps", "--on", "one").returncode == 0
    key = str(link("one")["key"])
    with Links() as links:
        links.drop(key)
    places.forget(key)
    words = [sys.executable, "-m", "holdfast", "ps", "--on", "one"]
    with contextlib.ExitStack() as stack:
        begun = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(3)]
        verbs = [stack.enter_context(ended(verb)) for verb in begun]
        said = [verb.communicate(timeout=100)[1] for verb in verbs]
    assert [verb.returncode for verb in verbs] == [0] * 3, said


def test_what_a_server_refused_is_tried_again_a_day_later(servers: dict[str, lab.Sshd], laptop: Path) -> None:
    """It is, and refused once more, and remembered again."""
    assert holdfast(laptop, "ps", "--on", "closed").returncode == 0
    key = str(link("closed")["key"])
    node = places.remembered(key)
    assert node is not None
    assert node.refuses(time.time())
    tries = servers["closed"].log.count("refused streamlocal")
    with Links() as links:
        links.drop(key)
    assert holdfast(laptop, "ps", "--on", "closed").returncode == 0
    assert servers["closed"].log.count("refused streamlocal") == tries

    places.remember(dataclasses.replace(node, refused_s=node.refused_s - places.REFUSED_S))
    with Links() as links:
        links.drop(key)
    assert holdfast(laptop, "ps", "--on", "closed").returncode == 0
    assert servers["closed"].log.count("refused streamlocal") > tries
    after = places.remembered(key)
    assert after is not None
    assert after.refused_s > node.refused_s
