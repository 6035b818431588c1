"""A link through our own relay, which resumes after cuts: the agent waits for it, and says how it is meanwhile."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import HostUnreachable
from holdfast.link import hosts, target
from holdfast.link.client import Links, NeedsAuthentication
from holdfast.link.hosts import Settings
from holdfast.link.master import Master
from holdfast.relay.server import Settings as Relaying
from holdfast.units import Keepalive
from tests.children import ended
from tests.labs import relays
from tests.labs import sshd as lab
from tests.labs.links import own_links
from tests.waiting import until

pytestmark = pytest.mark.e2e


@pytest.fixture
def between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[lab.Sshd, relays.Cutter]]:
    """A node behind a relay, and what can cut the way to that."""
    monkeypatch.setenv("HOLDFAST_RELAY_TOKEN", relays.TOKEN)
    with (
        lab.person() as (user, home),
        lab.sshd(tmp_path / "sshd", user, home) as server,
        relays.relay(tmp_path / "relay", "--target", f"127.0.0.1:{server.port}") as relay,
        relays.cutter(relay.port) as cutter,
        own_links(tmp_path / "home", monkeypatch),
    ):
        words = [sys.executable, "-m", "holdfast", "relay", "connect", relay.url(cutter.port)]
        server.config.write_text(f"{server.config.read_text()}  ProxyCommand {shlex.join(words)} %h %p\n")
        monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(server.config))
        yield server, cutter


@pytest.mark.timeout(180)
@pytest.mark.parametrize("cut_s", [1.0, pytest.param(60.0, marks=pytest.mark.soak)])
def test_a_cut_below_the_relay_is_waited_for(between: tuple[lab.Sshd, relays.Cutter], cut_s: float) -> None:
    """Without a relay our pings would end it 9.5 s after the cut, and ssh itself after 45 s."""
    server, cutter = between
    argv = [sys.executable, "-m", "holdfast", "exec", "--on", "node", "--", "echo begun; read line; exit 7"]
    with Links() as links, ended(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as running:
        assert running.stdin is not None and running.stdout is not None
        assert running.stdout.readline() == b"begun\n"
        before, seen = links.every()[0], list[str]()
        cutter.refuse(True)
        end_s = time.monotonic() + cut_s
        until(lambda: seen.append(links.every()[0]["state"]) or time.monotonic() > end_s, cut_s + 5)  # type: ignore[func-returns-value]
        cutter.refuse(False)
        running.communicate(b"word\n", timeout=60)
        assert running.returncode == 7
        until(lambda: links.every()[0]["state"] == "up")
        assert links.every()[0]["path"] == before["path"]
    assert set(seen) <= {"up", "suspect"}
    assert "suspect" in seen or cut_s < 10
    assert before["keepalive"] == "15x44"
    assert server.log.count("Accepted publickey") == 1


def test_a_command_waits_no_longer_than_it_is_told_to(between: tuple[lab.Sshd, relays.Cutter], tmp_path: Path) -> None:
    """The link is not given up meanwhile, so nothing else ends the wait. The master keeps what it was given."""
    argv = [sys.executable, "-m", "holdfast", "exec", "--on", "node", "--timeout", "2s", "--", "true"]
    with Links() as links, (tmp_path / "err").open("w+") as err:
        links.up("node")
        between[1].refuse(True)
        done = subprocess.run(argv, stdout=err, stderr=err, check=False)
        err.seek(0)
        said = err.read()

    assert done.returncode == 10
    assert re.search(r"error: node: the link is \w+: .* did not answer within 2 s\n", said), said


def test_a_relay_that_does_not_know_the_token_is_asked_once(
    between: tuple[lab.Sshd, relays.Cutter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_RELAY_TOKEN", "somebody-elses-token")

    with Links() as links, pytest.raises(NeedsAuthentication) as refused:
        links.up("node")

    assert str(refused.value) == "the relay on the way to node refuses: the token is not known here"
    assert refused.value.hint == "its file of tokens says who may go where"
    assert (tmp_path / "relay" / "relay.log").read_text().count("refused: the token is not known here") == 1


def test_a_relay_that_is_away_is_told_in_its_own_words(between: tuple[lab.Sshd, relays.Cutter]) -> None:
    between[1].refuse(True)

    with (
        Links() as links,
        pytest.raises(HostUnreachable, match="the way to node: cannot reach the relay ws://") as away,
    ):
        links.up("node")

    assert not isinstance(away.value, NeedsAuthentication)


def test_ssh_waits_for_longer_than_a_relay_keeps_a_session_unless_somebody_says_otherwise() -> None:
    chosen = hosts.outlasting(hosts.choose([]))
    assert chosen.keepalive is not None
    assert chosen.keepalive.interval_s * chosen.keepalive.count > Relaying(tokens=()).keep_s

    said = hosts.choose([("the run file", Settings(keepalive=Keepalive(interval_s=9, count=2)))])
    assert hosts.outlasting(said) == said


@pytest.mark.parametrize(
    ("command", "is_relayed"),
    [
        ("holdfast relay connect wss://relay.example.org/ssh %h %p", True),
        ("/home/ada/.local/bin/holdfast relay connect --token-file t wss://r/ssh %h %p", True),
        ("python3 -m holdfast  relay  connect wss://r/ssh %h %p", True),
        ("ssh -W %h:%p gate", False),
        ("", False),
    ],
)
def test_what_a_relay_is_known_by(command: str, is_relayed: bool) -> None:
    to = target.Target("a", "me", "host", 22, proxy_command=command)

    assert (to.is_relayed, Master(to, lambda _: None).link.resumes) == (is_relayed, is_relayed)
