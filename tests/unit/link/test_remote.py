"""Commands on hosts through the agent, from the command line and from Python, on a real sshd."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import UsageError
from holdfast.link import mux, names, remote
from holdfast.link.client import Links
from tests.children import ended
from tests.labs import sshd as lab
from tests.labs.links import kill_master
from tests.labs.servers import free_port
from tests.unit.commands.terminal import Terminal
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shared_agent")]


@pytest.fixture(scope="module", autouse=True)
def server(sshd: lab.Sshd) -> Iterator[lab.Sshd]:
    """Under more names, and one where nobody listens."""
    node = sshd.config.read_text()
    more = [node.replace("Host node", f"Host gpu-{name}") for name in "abc"]
    dead = node.replace("Host node", "Host dead").replace(f"Port {sshd.port}", f"Port {free_port()}")
    sshd.config.write_text("\n".join([node, *more, dead]))
    yield sshd
    sshd.config.write_text(node)


def holdfast(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "holdfast", *words], input=given, capture_output=True, timeout=60, check=False
    )


def test_one_host_gives_its_bytes_and_its_status() -> None:
    sent = os.urandom(2_000_000)

    done = holdfast("exec", "--on", "node", "--", "cat; echo oops >&2; exit 9", given=sent)

    assert (done.returncode, done.stderr) == (9, b"oops\n")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(sent).digest()


def test_a_command_that_is_killed_is_no_host_that_is_away() -> None:
    """As on a machine that has no memory left; ssh exits with 255 too."""
    done = holdfast("exec", "--on", "node", "--", "echo begun; kill -9 $$")

    assert (done.returncode, done.stdout, done.stderr) == (255, b"begun\n", b"")


def test_a_command_whose_connection_is_cut_is_told_as_that(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "holdfast", "exec", "--on", "node", "--", "echo begun; sleep 100"]
    with (
        (tmp_path / "err").open("wb") as said,
        ended(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=said)) as running,
    ):
        assert running.stdout is not None
        assert running.stdout.readline() == b"begun\n"
        kill_master()
        assert running.wait(60) == 10

    assert re.match(
        r"error: node: the (connection was cut|link is (down|dead|connecting): )", (tmp_path / "err").read_text()
    )


def test_ctrl_c_ends_what_waits_for_several_hosts_with_one_line(server: lab.Sshd) -> None:
    flag = server.allowed.parent.parent / "begun"
    with socket.create_server(("127.0.0.1", 0)) as nobody_answers, edited(server.config) as config:
        port = nobody_answers.getsockname()[1]
        node = config.read_text().partition("\n\n")[0]
        config.write_text(
            f"{node}\n{node.replace('Host node', 'Host mute').replace(f'Port {server.port}', f'Port {port}')}"
        )
        seen = Terminal("exec", "--on", "node", "--on", "mute", "--timeout", "10m", "--", f"touch {flag}; sleep 60.5")
        until(flag.exists)
        seen.press(b"\x03")

        assert seen.exit_code() == 130
    assert seen.shown.replace(b"^C", b"").split() == b"what has begun on the hosts goes on there".split()
    until(lambda: holdfast("exec", "--on", "node", "--", "pkill -xf 'sleep 60.5'").returncode == 0)


@contextlib.contextmanager
def edited(path: Path) -> Iterator[Path]:
    """A file that is as it was after the block."""
    before = path.read_text()
    try:
        yield path
    finally:
        path.write_text(before)


def test_a_reader_that_leaves_is_no_error() -> None:
    argv = [sys.executable, "-m", "holdfast", "exec", "--on", "node", "--", "yes"]
    with ended(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == b"y\n"
        child.stdout.close()
        assert (child.stderr.read(), child.wait(20)) == (b"", 0)


def test_words_arrive_as_they_are() -> None:
    done = holdfast("exec", "--on", "node", "--", "printf", "%s|", "a b", "$HOME", "it's")

    assert (done.stdout, done.stderr) == (b"a b|$HOME|it's|", b"")


def test_a_pattern_means_every_alias_and_each_line_says_whose_it_is() -> None:
    done = holdfast("exec", "--on", "gpu-*", "--", "echo one; echo two >&2")

    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == ["gpu-a: one", "gpu-b: one", "gpu-c: one"]
    assert done.stderr.decode().splitlines() == ["gpu-a: two", "gpu-b: two", "gpu-c: two"]


def test_a_host_that_does_not_answer_is_told_and_the_others_answer() -> None:
    done = holdfast("exec", "--on", "gpu-a", "--on", "dead", "--json", "--", "exit 3")
    told = {one["host"]: one for one in map(json.loads, done.stdout.splitlines())}

    assert done.returncode == 255
    assert (told["gpu-a"]["status"], told["gpu-a"]["error"]) == (3, "")
    assert (told["dead"]["status"], "no SSH server listens" in told["dead"]["error"]) == (255, True)


def test_a_command_that_takes_too_long_is_ended(server: lab.Sshd) -> None:
    config = str(server.config)
    with Links() as links:
        links.up("node", config=config)  # a login is not part of the time
        (first,) = remote.everywhere(["node"], "exec sleep 60.25", config=config, within_s=3)

    assert "did not end within" in first.error
    until(lambda: [one.out for one in remote.everywhere(["node"], "pgrep -xf 'sleep 60.25'", config=config)] == [b""])


def test_many_commands_at_once_meet_no_refusal(server: lab.Sshd) -> None:
    done = list(remote.everywhere(["node"] * 60, "true", config=str(server.config), at_once=32))

    assert [(one.status, one.error) for one in done] == [(0, "")] * 60


def test_a_server_that_says_no_again_and_again_costs_time_and_nothing_else(tmp_path: Path) -> None:
    few = {"MaxSessions": "2"}
    with lab.person() as (user, home), lab.sshd(tmp_path / "ssh", user, home, options=few) as server, Links() as links:
        config = str(server.config)
        pid = asyncio.run(mux.alive(links.up("node", config=config).path))
        done = list(remote.everywhere(["node"] * 12, "sleep 0.1", config=config, at_once=12))

        assert [(one.status, one.error) for one in done] == [(0, "")] * 12
        assert "no more sessions" in server.log
        assert asyncio.run(mux.alive(links.up("node", config=config).path)) == pid


def test_verbs_at_once_on_one_connection_meet_no_refusal(tmp_path: Path, server: lab.Sshd) -> None:
    """Each counts its own sessions alone, so together they ask for more than the server's ten: nobody is told of it."""
    flag, refused = server.allowed.with_name("go"), server.log.count("no more sessions")
    given = tmp_path / "given"
    given.write_bytes(os.urandom(100_000))
    wait, argv = f"until test -e {flag}; do sleep 0.05; done;", [sys.executable, "-m", "holdfast", "exec"]
    hosts = [word for name in ("node", "gpu-a", "gpu-b", "gpu-c") for word in ("--on", name)]
    verbs = [
        *[[*argv, *hosts, "--json", "--", f"{wait} echo done"]] * 3,
        *[[*argv, *hosts[:2], "--", f"{wait} cat"]] * 3,
    ]

    with contextlib.ExitStack() as stack:
        inputs = [stack.enter_context(given.open("rb")) for _ in verbs]
        running = [
            stack.enter_context(ended(subprocess.Popen(words, stdin=mine, stdout=subprocess.PIPE)))
            for words, mine in zip(verbs, inputs, strict=True)
        ]
        until(lambda: server.log.count("no more sessions") > refused)
        flag.touch()
        done = [(child.communicate(timeout=60)[0], child.returncode) for child in running]

    assert [status for _, status in done] == [0] * len(verbs)
    for out, _ in done[:3]:
        assert [json.loads(line)["out"] for line in out.splitlines()] == ["done\n"] * 4
    assert {out for out, _ in done[3:]} == {given.read_bytes()}


def test_a_pattern_that_means_nobody_is_told(server: lab.Sshd) -> None:
    with pytest.raises(UsageError, match="no host of your ssh configuration matches 'gpx-\\*'") as refused:
        names.chosen(["gpx-*"], str(server.config))
    assert "gpu-" in refused.value.hint


def test_aliases_are_found_in_every_form_that_ssh_takes(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("host = c\nHost d* !e\n")
    (tmp_path / "config").write_text(
        f'Host a "b"  # of mine\nInclude more.*\nInclude {tmp_path}/config\nMatch host x\n'
    )

    assert names.known(str(tmp_path / "config")) == ["a", "b", "c"]
