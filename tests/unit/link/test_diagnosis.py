"""What a real ssh says when it does not come through, and what we make of it."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import HostUnreachable, UsageError
from holdfast.link import target
from holdfast.link.diagnosis import Cause, diagnose
from tests.labs import sshd as lab
from tests.labs.servers import free_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Sshd]:
    with lab.person() as (user, home), lab.sshd(tmp_path_factory.mktemp("sshd"), user, home) as running:
        yield running


def said(config: Path, *options: str, host: str = "node") -> str:
    argv = ["ssh", "-F", str(config), "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", *options, host, "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 255
    return done.stderr


def changed(server: lab.Sshd, folder: Path, **lines: str) -> Path:
    config = folder / "config"
    config.write_text("Host node\n" + "".join(f"  {k} {v}\n" for k, v in lines.items()) + server.config.read_text())
    return config


def test_a_key_that_is_not_taken(server: lab.Sshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    text = server.config.read_text().replace(f"{server.folder}/key", str(tmp_path / "other"))
    (tmp_path / "config").write_text(text)

    why = diagnose(said(tmp_path / "config"), "node")

    assert (why.cause, why.cause.is_retried) == (Cause.AUTHENTICATION, False)
    assert why.sentence == "node takes none of our keys (it offers publickey)"


def test_it_is_told_where_a_host_before_it_is_the_one_that_refuses(server: lab.Sshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    node = server.config.read_text()
    gate = node.replace("Host node", "Host gate")
    refusing, deaf = (
        gate.replace(f"{server.folder}/key", str(tmp_path / "other")),
        gate.replace("  Port ", "  Port 1 #"),
    )

    def why(jump: str, target: str = node) -> tuple[str, str]:
        (tmp_path / "config").write_text(f"{target}  ProxyJump gate\n{jump}")
        found = diagnose(said(tmp_path / "config"), "node")
        return found.sentence, found.hint

    before = "a host on the way to node"
    assert why(refusing) == (f"{before} takes none of our keys (it offers publickey)", "ssh -v node shows which")
    assert why(deaf) == (f"{before} is there, and no SSH server listens", "ssh -v node shows which")
    there = node.replace("  Port ", "  Port 1 #")
    assert why(gate, there) == ("node is there, and no SSH server listens", "is the port right?")


def test_a_host_key_that_has_changed(server: lab.Sshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "host")], check=True)
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {(tmp_path / 'host.pub').read_text()}")

    why = diagnose(said(changed(server, tmp_path, UserKnownHostsFile=str(tmp_path / "known"))), "node")

    assert why.cause is Cause.HOST_KEY
    assert "another host key than before" in why.sentence


def test_a_host_key_that_is_not_known(server: lab.Sshd, tmp_path: Path) -> None:
    why = diagnose(said(changed(server, tmp_path, UserKnownHostsFile="/dev/null")), "node")

    assert (why.cause, why.hint) == (Cause.HOST_KEY, "ssh node once")


def test_nobody_listens(server: lab.Sshd, tmp_path: Path) -> None:
    why = diagnose(said(changed(server, tmp_path, Port=str(free_port()))), "node")

    assert (why.cause, why.cause.is_retried) == (Cause.NETWORK, True)
    assert why.sentence == "node is there, and no SSH server listens"


def test_a_name_without_an_address(server: lab.Sshd) -> None:
    why = diagnose(said(server.config, host="nowhere.invalid"), "nowhere.invalid")

    assert (why.cause, why.sentence) == (Cause.NAME, "nobody knows an address of nowhere.invalid")


def test_an_option_that_ssh_does_not_know(server: lab.Sshd, tmp_path: Path) -> None:
    config = changed(server, tmp_path, KeepAliveForever="yes")

    assert diagnose(said(config), "node").cause is Cause.CONFIGURATION
    with pytest.raises(
        HostUnreachable, match=r"for node: .*: line \d+: Bad configuration option: keepaliveforever\n"
    ) as met:
        target.resolve("node", config=str(config))
    assert "ssh -G node" in met.value.hint


@pytest.mark.parametrize("size_bytes", [120, 100])  # too long as it is, and with what ssh puts behind it at first
def test_a_control_path_of_the_user_that_is_too_long(server: lab.Sshd, tmp_path: Path, size_bytes: int) -> None:
    """Ours is short wherever it lies; one of a jump host is as the user has configured it."""
    node = server.config.read_text()
    gate = node.replace("Host node", "Host gate")
    path = f"/tmp/{'c' * (size_bytes - 5)}"
    text = f"{node}  ProxyJump gate\n{gate}  ControlMaster auto\n  ControlPersist 60\n  ControlPath {path}\n"
    (tmp_path / "config").write_text(text)

    why = diagnose(said(tmp_path / "config"), "node")

    assert (why.cause, why.cause.is_retried) == (Cause.CONFIGURATION, False)
    assert why.sentence == "your ssh configuration has too long a ControlPath on the way to node"
    assert why.hint == "shorten it there, for example ~/.ssh/%C"


def test_a_server_that_hangs_up_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        (tmp_path / "config").write_text(f"Host node\n  HostName 127.0.0.1\n  Port {listener.getsockname()[1]}\n")
        text = said(tmp_path / "config")
        thread.join()

    assert diagnose(text, "node").sentence == "node hangs up at once"


def test_of_several_lines_the_cause_is_told_and_not_the_consequence() -> None:
    lines = "ssh: connect to host a port 22: Connection refused\nclient_loop: send disconnect: Broken pipe"

    assert diagnose(lines, "a").cause is Cause.NETWORK
    assert diagnose("", "a").sentence == "ssh a ended and said nothing"
    assert diagnose("hm\nwhat", "a").sentence == "ssh a ended: what"


def test_a_target_is_what_the_users_configuration_makes_of_a_name(server: lab.Sshd, tmp_path: Path) -> None:
    one = target.resolve("node", config=str(server.config))
    (tmp_path / "config").write_text(server.config.read_text() + "\nHost other\n  HostName 127.0.0.1\n")

    assert (one.host, one.port) == ("127.0.0.1", server.port)
    assert one.key == target.resolve("node", config=str(tmp_path / "config")).key
    assert one.key != target.resolve("other", config=str(tmp_path / "config")).key
    assert len(str(target.control_path(one))) <= target.MOST_PATH_BYTES


@pytest.mark.parametrize("name", ["", "-oProxyCommand=touch /tmp/x", "a b"])
def test_what_is_no_name_never_reaches_ssh(name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a host"):
        target.resolve(name)
