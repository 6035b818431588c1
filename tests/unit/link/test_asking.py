"""What ssh asks a person: a real ssh and sshd, and a verb at a terminal."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.link import asking
from holdfast.link.client import Links
from tests.labs import sshd as lab
from tests.labs.links import master_of, own_links
from tests.labs.servers import free_port
from tests.needs import need
from tests.unit.commands.terminal import Terminal
from tests.waiting import until

pytestmark = pytest.mark.e2e
SECRET = b"correct-horse"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Sshd]:
    with lab.person() as (user, home):
        options = {}
        if os.geteuid() == 0:
            subprocess.run(["chpasswd"], input=f"{user}:{SECRET.decode()}\n", text=True, check=True)
            options = {"UsePAM": "yes", "PasswordAuthentication": "yes", "KbdInteractiveAuthentication": "yes"}
        with lab.sshd(tmp_path_factory.mktemp("sshd"), user, home, options=options) as running:
            yield running


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: lab.Sshd) -> Iterator[Path]:
    """A configuration of this test's own, which knows the server's key, and shows it one key of ours."""
    own = tmp_path / "config"
    shutil.copy(server.folder / "key", tmp_path / "key")
    shutil.copy(server.folder / "known_hosts", tmp_path / "known_hosts")
    more = "  PreferredAuthentications publickey\n"
    own.write_text(server.config.read_text().replace(str(server.folder), str(tmp_path)) + more)
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(own))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with own_links(tmp_path / "home", monkeypatch):
        yield own


@pytest.fixture
def locked(tmp_path: Path) -> None:
    """The key has a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", SECRET, "-f", str(tmp_path / "key")], check=True)


@pytest.mark.usefixtures("locked")
def test_a_passphrase_is_asked_for_at_the_terminal_and_not_shown() -> None:
    seen = Terminal("exec", "--on", "node", "--", "echo in-$((1 + 1))")
    seen.await_text(b"Enter passphrase for key")
    seen.press(SECRET + b"\r")
    seen.await_text(b"in-2")

    assert seen.exit_code() == 0
    assert SECRET not in seen.shown


@pytest.mark.usefixtures("locked")
def test_a_passphrase_that_is_wrong_is_asked_for_again() -> None:
    seen = Terminal("exec", "--on", "node", "--", "echo in-$((1 + 1))")
    seen.await_text(b"Enter passphrase for key")
    seen.press(b"wrong\r")
    until(lambda: seen.read().count(b"Enter passphrase") == 2)
    seen.press(SECRET + b"\r")

    assert seen.exit_code() == 0


@pytest.mark.usefixtures("locked")
def test_who_does_not_answer_is_not_asked_for_ever(server: lab.Sshd) -> None:
    seen = Terminal("exec", "--on", "node", "--", "true")
    seen.await_text(b"Enter passphrase")
    seen.press(b"\x03")
    assert seen.exit_code() == 130

    with Links() as links:
        until(lambda: links.every()[0]["state"] == "needs-authentication")


@pytest.mark.usefixtures("locked")
def test_who_leaves_several_hosts_at_a_question_leaves_at_once_and_the_terminal_as_it_was(config: Path) -> None:
    config.write_text(config.read_text().replace("Host node", "Host node node-b"))
    seen = Terminal("exec", "--on", "node", "--on", "node-b", "--", "true")
    before = termios.tcgetattr(seen.screen)
    seen.await_text(b"Enter passphrase")
    assert termios.tcgetattr(seen.screen) != before
    seen.press(b"\x03")
    until(lambda: termios.tcgetattr(seen.screen) == before)

    assert seen.exit_code() == 130
    assert b"Traceback" not in seen.shown


@pytest.mark.usefixtures("locked")
def test_where_nobody_can_be_asked_it_is_told_at_once() -> None:
    argv = [sys.executable, "-m", "holdfast", "exec", "--on", "node", "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, start_new_session=True)

    assert done.returncode == 10
    assert "takes none of our keys" in done.stderr


@pytest.mark.parametrize(("way", "prompt"), [("password", b"'s password:"), ("keyboard-interactive", b") Password:")])
def test_a_password_is_asked_for(config: Path, way: str, prompt: bytes) -> None:
    need(os.geteuid() == 0, "needs root, to give a user a password")
    config.write_text(
        config.read_text().replace("PreferredAuthentications publickey", f"PreferredAuthentications {way}")
    )
    seen = Terminal("exec", "--on", "node", "--", "echo in-$((1 + 1))")
    seen.await_text(prompt)
    seen.press(SECRET + b"\r")
    seen.await_text(b"in-2")

    assert seen.exit_code() == 0
    assert SECRET not in seen.shown


@pytest.mark.parametrize(("word", "status"), [(b"no", 10), (b"yes", 0)])
def test_a_host_key_that_is_not_known_is_the_persons_to_judge(tmp_path: Path, word: bytes, status: int) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("")
    seen = Terminal("exec", "--on", "node", "--", "true")
    seen.await_text(b"Are you sure you want to continue connecting")
    assert b"ED25519 key fingerprint is SHA256:" in seen.shown
    seen.press(word + b"\r")

    assert seen.exit_code() == status
    assert bool(known.read_text()) == (word == b"yes")


@pytest.mark.usefixtures("locked")
def test_a_forward_that_comes_back_asks_again() -> None:
    seen = Terminal("forward", "node", f"0:{free_port()}")
    seen.await_text(b"Enter passphrase")
    seen.press(SECRET + b"\r")
    seen.await_text(b"leads to")
    with Links() as links:
        os.kill(master_of(links.every()[0]["path"]), signal.SIGKILL)
    until(lambda: seen.read().count(b"Enter passphrase") == 2)
    seen.press(SECRET + b"\r")
    seen.await_text(b"up again after")
    seen.press(b"\x03")

    assert seen.exit_code() == 130


def test_ssh_without_anybody_to_ask_shows_each_key_once(server: lab.Sshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    shutil.move(tmp_path / "other", tmp_path / "key")
    refused = server.log.count("Failed publickey")
    argv = [sys.executable, "-m", "holdfast", "exec", "--on", "node", "--", "true"]
    subprocess.run(argv, capture_output=True, timeout=60, start_new_session=True)

    assert server.log.count("Failed publickey") <= refused + 1


@pytest.mark.usefixtures("locked")
def test_what_a_jump_host_asks_is_asked_too(config: Path) -> None:
    node = config.read_text()
    config.write_text(node.replace("Host node", "Host jump") + node + "  ProxyJump jump\n")
    seen = Terminal("exec", "--on", "node", "--", "echo in-$((1 + 1))")
    for number in (1, 2):
        until(lambda number=number: seen.read().count(b"Enter passphrase") == number)  # type: ignore[misc]
        seen.press(SECRET + b"\r")
    seen.await_text(b"in-2")

    assert seen.exit_code() == 0


def test_a_touch_that_a_hardware_key_waits_for_is_told(server: lab.Sshd) -> None:
    """As ssh tells it (notify_start in readpass.c); we have no such key."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        seen = Terminal("exec", "--on", "node", "--", "true")
        with Links() as links:
            until(lambda: [link["state"] for link in links.every()] == ["connecting"])
            key = links.every()[0]["key"]
        told = {**os.environ, **asking.environment(key), "SSH_ASKPASS_PROMPT": asking.NOTICE}
        subprocess.run([asking.PROGRAM, "Confirm user presence for key ED25519-SK"], env=told, timeout=20)
        seen.await_text(b"Confirm user presence for key ED25519-SK")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert seen.exit_code() == 0
