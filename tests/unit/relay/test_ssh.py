"""A real ssh whose ProxyCommand is ours, a real sshd, and everything that may lie between."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import relays
from tests.labs import sshd as lab

pytestmark = pytest.mark.e2e
MIB = 1 << 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Sshd]:
    with lab.person() as (user, home), lab.sshd(tmp_path_factory.mktemp("sshd"), user, home) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, node: lab.Sshd) -> Iterator[relays.Relay]:
    with relays.relay(tmp_path_factory.mktemp("relay"), "--target", f"127.0.0.1:{node.port}") as running:
        yield running


def ssh(
    node: lab.Sshd,
    url: str,
    *command: str,
    options: tuple[str, ...] = (),
    given: bytes = b"",
    within_s: float = 100,
    **more: str,
) -> subprocess.CompletedProcess[bytes]:
    """Through a relay at `url`, which `relay connect` is told with `options`."""
    proxy = shlex.join([sys.executable, "-m", "holdfast", "relay", "connect", *options, url])
    argv = ["ssh", "-F", str(node.config), "-o", "BatchMode=yes", "-o", f"ProxyCommand={proxy} %h %p", "node"]
    env = relays.environ(**more)
    return subprocess.run([*argv, *command], input=given, env=env, capture_output=True, timeout=within_s, check=False)


def both_ways(node: lab.Sshd, server: relays.Relay, *, size_mib: int, cuts: int, within_s: float = 100) -> None:
    """`size_mib` there and back over one connection of ssh, which is cut so often."""
    sent = os.urandom(MIB) * size_mib
    before = node.log.count("Accepted publickey")
    with relays.cutter(server.port, every_bytes=2 * size_mib * MIB // (cuts + 1), cuts=cuts) as between:
        done = ssh(node, server.url(between.port), "cat", given=sent, within_s=within_s)

        assert (done.returncode, done.stderr) == (0, b"")
        assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(sent).digest()
        assert (between.cuts, between.connections) == (cuts, cuts + 1)
    assert node.log.count("Accepted publickey") == before + 1


def test_a_command_and_its_status(node: lab.Sshd, server: relays.Relay) -> None:
    done = ssh(node, server.url(), "echo there; echo oops >&2; exit 7")

    assert (done.returncode, done.stdout, done.stderr) == (7, b"there\n", b"oops\n")


def test_one_connection_outlives_ten_cuts(node: lab.Sshd, server: relays.Relay) -> None:
    both_ways(node, server, size_mib=32, cuts=10)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_one_connection_outlives_thirty_cuts(node: lab.Sshd, server: relays.Relay) -> None:
    both_ways(node, server, size_mib=1024, cuts=30, within_s=580)


def test_a_wrong_token_is_told_by_ssh(node: lab.Sshd, server: relays.Relay) -> None:
    done = ssh(node, server.url(), "true", token="a-token-that-is-not-known")

    assert done.returncode == 255
    assert b"error: the token is not known here\n" in done.stderr


def test_tls_with_an_authority_of_our_own(node: lab.Sshd, tmp_path: Path) -> None:
    cert, key = relays.certificate(tmp_path / "tls")
    words = ["--target", f"127.0.0.1:{node.port}", "--cert", str(cert), "--key", str(key)]
    with relays.relay(tmp_path / "r", *words) as server:
        done = ssh(node, server.url(), "echo there", options=("--ca", str(cert)))
        assert (done.stdout, done.stderr) == (b"there\n", b"")

        other, _ = relays.certificate(tmp_path / "other")
        for options in ((), ("--ca", str(other))):
            done = ssh(node, server.url(), "echo there", options=options)
            assert done.returncode == 255
            assert b"is not trusted: self-signed certificate" in done.stderr


def test_behind_nginx_with_a_prefix_and_tls_ended_there(node: lab.Sshd, tmp_path: Path) -> None:
    words = ["--target", f"127.0.0.1:{node.port}", "--behind-proxy"]
    with relays.relay(tmp_path / "r", *words) as server, relays.nginx(tmp_path / "nginx", server.port) as (port, cert):
        url = f"wss://127.0.0.1:{port}/a/prefix/ssh"
        sent = os.urandom(2 * MIB)

        done = ssh(node, url, "cat", options=("--ca", str(cert)), given=sent)

        assert (done.stdout == sent, done.stderr) == (True, b"")
        refused = ssh(node, url, "cat", options=("--ca", str(cert)), token="a-token-that-is-not-known")
        assert b"error: the token is not known here\n" in refused.stderr
        assert "127.0.0.1 refused" in server.log


def test_through_a_proxy_that_wants_a_password(node: lab.Sshd, tmp_path: Path) -> None:
    cert, key = relays.certificate(tmp_path / "tls")
    words = ["--target", f"127.0.0.1:{node.port}", "--cert", str(cert), "--key", str(key)]
    with (
        relays.relay(tmp_path / "r", *words) as server,
        relays.tinyproxy(tmp_path / "proxy", "ann", "pass-word") as (port, log),
    ):
        trusted = ("--ca", str(cert))
        through = ssh(
            node, server.url(), "echo there", options=trusted, HTTPS_PROXY=f"http://ann:pass-word@127.0.0.1:{port}"
        )
        assert (through.stdout, through.stderr) == (b"there\n", b"")
        assert f"127.0.0.1:{server.port}" in log.read_text()

        wrong = ssh(node, server.url(), "true", options=trusted, HTTPS_PROXY=f"http://ann:wrong@127.0.0.1:{port}")
        assert wrong.returncode == 255
        assert b"cannot reach the relay" in wrong.stderr
        assert re.search(rb"the proxy answered 40[17]", wrong.stderr)
        assert b"wrong@" not in wrong.stderr

        around = ssh(
            node, server.url(), "echo there", options=trusted, HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="127.0.0.1"
        )
        assert around.stdout == b"there\n"
