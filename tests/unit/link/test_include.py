"""Our file of ssh's configuration beside the user's, as ssh itself reads them."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, UsageError
from holdfast.link import hosts, include, target
from holdfast.link.hosts import Host, Idle, Measured, Settings
from tests.needs import need_program

USERS = "# mine\nHost gpu-*\n  User alice\n  ServerAliveInterval 7\n"


@pytest.fixture(autouse=True)
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A configuration of the user's own in a folder with a space in its name, not too deep for sockets."""
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    with tempfile.TemporaryDirectory(prefix="hf ", dir="/tmp") as folder:
        file = Path(folder) / "config"
        file.write_text(USERS)
        monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(file))
        yield file


def as_ssh_has_it(alias: str, config: Path | str) -> dict[str, str]:
    done = subprocess.run([need_program("ssh"), "-F", config, "-G", alias], capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def test_plain_ssh_reads_our_block_once_the_line_is_there(users: Path) -> None:
    include.put("gpu-a", {"HostName": "10.0.0.5", **include.kept(Host())})
    assert as_ssh_has_it("gpu-a", users)["hostname"] == "gpu-a"

    include.include()
    include.include()

    known = as_ssh_has_it("gpu-a", users)
    assert (known["hostname"], known["user"], known["serveraliveinterval"]) == ("10.0.0.5", "alice", "60")
    assert (known["serveralivecountmax"], known["controlmaster"], known["controlpersist"]) == ("5", "auto", "1800")
    assert known["controlpath"].startswith(str(users.parent / "hf-")) and "%" not in known["controlpath"]
    assert users.read_text() == f"{include.line()}\n\n{USERS}"
    assert as_ssh_has_it("gpu-b", users)["serveraliveinterval"] == "7"
    assert as_ssh_has_it("other", users)["controlmaster"] == "false"


def test_without_the_line_holdfast_knows_the_host_and_the_users_rules(users: Path) -> None:
    assert target.users_config() == str(users)
    include.put("gpu-a", {"HostName": "10.0.0.5", "Port": "2222"})

    found = target.resolve("gpu-a", config=target.users_config())

    assert (found.host, found.port, found.user) == ("10.0.0.5", 2222, "alice")
    assert users.read_text() == USERS
    include.include()
    assert target.users_config() == str(users)


def test_a_line_below_a_host_does_not_count_and_one_of_the_users_own_does(users: Path) -> None:
    users.write_text(f"{USERS}\n{include.line()}\n")
    assert not include.is_included()
    users.write_text(f"# mine\n  include = {include.line().split(' ', 1)[1]}\n{USERS}")
    assert include.is_included()


def test_a_link_into_dotfiles_stays_one(users: Path, tmp_path: Path) -> None:
    (tmp_path / "dotfile").write_text(USERS)
    users.unlink()
    users.symlink_to(tmp_path / "dotfile")

    include.include()

    assert users.is_symlink() and (tmp_path / "dotfile").read_text().endswith(USERS)


def test_a_user_without_a_configuration_gets_one(users: Path) -> None:
    users.unlink()
    include.include()
    assert users.read_text() == f"{include.line()}\n\n"


def test_blocks_come_back_and_the_way_stays_when_settings_change() -> None:
    include.put("gpu-a", {"HostName": "h", "IdentityFile": "/my keys/k", **include.kept(Host())})
    include.put("gpu-b", include.block("gpu-b", Host(settings=Settings(multiplex=False, compression="on"))))
    slow = Measured(at_s=0.0, trip_s=0.3, idle=Idle(alive_s=60.0, dead_s=120.0))

    include.put("gpu-a", include.block("gpu-a", Host(measured=slow)))

    first, second = include.load()["gpu-a"], include.load()["gpu-b"]
    assert (first["HostName"], first["IdentityFile"]) == ("h", "/my keys/k")
    assert (first["ServerAliveInterval"], first["ServerAliveCountMax"], first["Compression"]) == ("20", "18", "yes")
    assert (second["ControlMaster"], second["Compression"]) == ("no", "yes")
    assert include.remove("gpu-a") and not include.remove("gpu-a")
    assert list(include.load()) == ["gpu-b"]


def test_a_connection_that_is_not_to_be_kept_is_not_kept_by_plain_ssh_either() -> None:
    assert include.kept(Host(settings=Settings(persist_s=0.0)))["ControlPersist"] == "no"


def test_every_keyword_of_a_block_means_something_to_ssh() -> None:
    every = Settings(keepalive="off", tcp_keepalive=False, identities_only=True, compression="off")
    include.put("gpu-a", include.kept(Host(settings=every)))

    known = as_ssh_has_it("gpu-a", include.own_file())

    assert [known[name] for name in ("serveraliveinterval", "tcpkeepalive", "identitiesonly", "compression")] == [
        "0", "no", "yes", "no",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["gpu-*", "a b", "-oProxyCommand=x", "", "a\nHost *", "!a"])
def test_only_names_of_one_host_are_taken(name: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a host"):
        include.put(name, {})


@pytest.mark.parametrize("value", ['a"b', "a\nProxyCommand x", "a\0"])
def test_values_cannot_leave_their_line(value: str) -> None:
    with pytest.raises(UsageError, match="cannot stand"):
        include.put("gpu-a", {"HostName": value})
    assert include.load() == {}


def test_lines_of_somebody_else_in_our_file_are_not_lost(users: Path) -> None:
    include.own_file().write_text("Host *\n  User bob\nMatch all\n  Port 1\n")

    with pytest.raises(HoldfastError, match="line 3 was not written by holdfast"):
        include.put("gpu-a", {})
    assert "bob" in include.own_file().read_text()


def test_a_folder_too_deep_for_sockets_means_no_sharing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(tmp_path / ("deep" * 20) / "config"))

    assert include.kept(Host())["ControlMaster"] == "no"
    assert "ControlPath" not in include.kept(Host())


def test_settings_reach_the_block() -> None:
    known = hosts.update("gpu-a", Settings(keepalive=hosts.read_keepalive("30x2")))
    assert include.kept(known)["ServerAliveInterval"] == "30"
