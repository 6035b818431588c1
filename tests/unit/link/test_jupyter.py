"""`holdfast jupyter` on a real sshd, with a program in Jupyter's place that takes what JupyterLab is given.

It stands for JupyterLab, which is forty packages: the same command line, token and socket, and nothing to look at.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.link.client import Links
from tests.labs import sshd as lab
from tests.labs.links import master_of, own_links
from tests.unit.commands.terminal import Terminal
from tests.waiting import until

pytestmark = pytest.mark.e2e

STAND_IN = """#!/usr/bin/env python3
import http.server, os, socketserver, sys
if sys.argv[1] != "lab": sys.exit(2)
if sys.argv[2] == "--version": sys.exit(0)
given = dict(word[2:].partition("=")[::2] for word in sys.argv[2:])
class Answer(http.server.BaseHTTPRequestHandler):
    def address_string(self): return "-"
    def do_GET(self):
        right = self.path.endswith("?token=" + os.environ["JUPYTER_TOKEN"])
        self.send_response(200 if right else 403)
        self.end_headers()
        self.wfile.write(os.getcwd().encode())
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): pass
Server(given["ServerApp.sock"], Answer).serve_forever()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Sshd]:
    with lab.person() as (user, folder), lab.sshd(tmp_path_factory.mktemp("sshd"), user, folder) as running:
        (folder / "bin").mkdir()
        (folder / "bin" / "jupyter").write_text(STAND_IN)
        (folder / "bin" / "jupyter").chmod(0o755)
        scripts = {
            "labless": "exit 1",
            "broken": 'test "$2" = --version || { echo boom; exit 1; }',
            "slow": f'test "$2" = --version || {{ until test -e {folder}/now; do sleep 0.1; done; '
            f'exec {folder}/bin/jupyter "$@"; }}',
        }
        for name, script in scripts.items():
            (folder / name).mkdir()
            (folder / name / "jupyter").write_text(f"#!/bin/sh\n{script}\n")
            (folder / name / "jupyter").chmod(0o755)
        (folder / "work").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOLDFAST_SSH_CONFIG", str(running.config))
            yield running


@pytest.fixture
def home(server: lab.Sshd) -> Path:
    return server.allowed.parent.parent


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[None]:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with own_links(tmp_path, monkeypatch):
        yield


def fetched(port: int, path: str) -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def listed(words: str) -> list[str]:
    """Pid and command line of each process with these words in it."""
    argv = ["pgrep", "-af", words]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()


def servers(home: Path) -> list[str]:
    return [line for line in listed(f"{home}/bin/jupyter") if "ServerApp.sock" in line]


def folder_of(server: str) -> Path:
    return Path(server.partition("ServerApp.sock=")[2].partition("/s ")[0])


def test_it_is_started_there_opened_here_and_ended_with_ctrl_c(home: Path) -> None:
    seen = Terminal("jupyter", "node", "--python", f"{home}/bin/python3", "--dir", "work")
    seen.await_text(b"?token=")
    url = until(lambda: re.search(rb"(http://\S+)\s", seen.read()))[1].decode()
    port, path = int(url.split(":")[2].split("/")[0]), url.split(str(url.split(":")[2].split("/")[0]), 1)[1]
    token = url.rpartition("=")[2]

    assert fetched(port, path) == (200, f"{home}/work".encode())
    assert fetched(port, "/lab")[0] == 403
    (server,) = servers(home)
    assert token not in server
    folder = folder_of(server)
    assert folder.stat().st_mode & 0o777 == 0o700

    with Links() as links:
        os.kill(master_of(links.every()[0]["path"]), signal.SIGKILL)
    seen.await_text(b"up again after")
    assert fetched(port, path)[0] == 200
    assert servers(home) == [server]

    seen.press(b"\x03")
    assert seen.exit_code() == 130
    assert servers(home) == []
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_it_ends_with_a_command_whose_terminal_is_closed_or_that_is_killed(home: Path, number: signal.Signals) -> None:
    seen = Terminal("jupyter", "node", "--python", f"{home}/bin/python3")
    seen.await_text(b"?token=")
    (server,) = servers(home)

    os.kill(seen.pid, number)

    assert seen.exit_code() == 130
    assert servers(home) == []
    assert not folder_of(server).exists()


def held_by(server: lab.Sshd) -> int:
    """How many files the processes of its connections have open."""
    watching = lab.children(server.pid)
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (*watching, *lab.children(*watching)))


def test_one_that_nobody_waits_for_any_more_is_not_left_there(home: Path, server: lab.Sshd) -> None:
    seen = Terminal("jupyter", "node", "--python", f"{home}/slow/python3")
    (begun,) = until(lambda: listed(f"{home}/slow/jupyter lab --no-browser"))
    before = held_by(server)
    os.kill(seen.pid, signal.SIGKILL)
    seen.exit_code()
    until(lambda: held_by(server) < before)  # the server knows it too

    (home / "now").touch()

    until(lambda: servers(home) == [])
    until(lambda: not folder_of(begun).exists())


def test_the_folder_of_one_that_was_killed_goes_with_the_next_start_and_that_of_a_live_one_stays(home: Path) -> None:
    words = ("jupyter", "node", "--python", f"{home}/bin/python3")
    with contextlib.ExitStack() as seen:
        for _ in range(2):
            seen.enter_context(looked_at(*words))
        killed, lives = servers(home)
        os.kill(int(killed.split()[0]), signal.SIGKILL)
        until(lambda: servers(home) == [lives])
        for one in (killed, lives):
            os.utime(folder_of(one), (0, 0))

        seen.enter_context(looked_at(*words))

        assert not folder_of(killed).exists()
        assert (folder_of(lives) / "s").exists()


@contextlib.contextmanager
def looked_at(*words: str) -> Iterator[None]:
    """A page, until the end of the block."""
    seen = Terminal(*words)
    seen.await_text(b"?token=")
    try:
        yield
    finally:
        seen.press(b"\x03")
        assert seen.exit_code() == 130


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "there is no jupyter at node"),
        (["--python", "labless/python3"], "the jupyter of node has no lab"),
        (["--dir", "nowhere"], "there is no such folder at node: nowhere"),
    ],
)
def test_what_is_missing_is_told(words: list[str], sentence: str) -> None:
    argv = [sys.executable, "-m", "holdfast", "jupyter", "node", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert sentence in done.stderr
    assert "hint: " in done.stderr


def test_a_host_that_says_something_else_is_told_and_steers_no_terminal(server: lab.Sshd) -> None:
    def said(*words: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-m", "holdfast", *words], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    keys, red = server.allowed.read_text(), r"\033[31mred\r"
    words = rf"printf 'holdfast-page: running {red}\n'; printf '{red}\n' >&2"
    server.allowed.write_text(f'command="{words}" {keys}')
    try:
        page, table = said("jupyter", "node"), said("ps", "--on", "node")
    finally:
        server.allowed.write_text(keys)

    assert page == (10, "error: no jupyter could be started at node: it says 'running \\x1b[31mred'\n")
    assert table[0] == 10
    assert table[1].startswith("error: node: the shell there gave no answer: \ufffd[31mred\nhint: ")


def test_one_that_ends_at_once_is_told_and_leaves_nothing() -> None:
    argv = [sys.executable, "-m", "holdfast", "jupyter", "node", "--python", "broken/python3"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr) == (1, "error: the jupyter of node has ended: boom\n")


def test_one_that_cannot_be_ended_is_named(home: Path, server: lab.Sshd) -> None:
    seen = Terminal("jupyter", "node", "--python", f"{home}/bin/python3")
    seen.await_text(b"?token=")
    keys = server.allowed.read_text()
    server.allowed.write_text("")
    try:
        with Links() as links:
            os.kill(master_of(links.every()[0]["path"]), signal.SIGKILL)
        assert seen.exit_code() == 10
        (left,) = servers(home)
        pid = int(left.split()[0])
        assert f"jupyter goes on there as process {pid}".encode() in seen.shown
        assert b"holdfast exec --on node -- kill %d" % pid in seen.shown
    finally:
        server.allowed.write_text(keys)
    os.kill(pid, signal.SIGTERM)
    until(lambda: servers(home) == [])
    shutil.rmtree(folder_of(left))
