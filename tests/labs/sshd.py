"""An SSH server of our own on loopback, for the user who runs the tests, and masters of OpenSSH that lead to it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.labs.servers import free_port, process
from tests.needs import need_program
from tests.waiting import until


@dataclass(frozen=True, slots=True)
class Sshd:
    """`config` is a client's configuration that knows it under the alias `node`."""

    port: int
    folder: Path
    config: Path
    allowed: Path  # the keys that are let in
    pid: int

    @property
    def log(self) -> str:
        """What the server has said."""
        return (self.folder / "sshd.log").read_text()


@contextlib.contextmanager
def person() -> Iterator[tuple[str, Path]]:
    """Name and empty home of a user without rights, who is there for as long as the block; elsewhere than root, we."""
    with tempfile.TemporaryDirectory(prefix="hf-home-", dir="/tmp") as folder:
        home = Path(folder)
        if os.geteuid():
            yield getpass.getuser(), home
            return
        name = home.name.replace("_", "-").lower()
        shell = ["--shell", "/bin/bash", "--password", "*"]  # no password, and not locked
        subprocess.run(["useradd", "--no-create-home", "--home-dir", folder, *shell, name], check=True)
        try:
            shutil.chown(home, name, name)
            yield name, home
        finally:
            subprocess.run(["pkill", "-KILL", "-u", name], check=False)
            subprocess.run(["userdel", "--force", name], check=True, capture_output=True)


@contextlib.contextmanager
def sshd(
    folder: Path,
    user: str,
    home: Path,
    *,
    options: dict[str, str] | None = None,
    address: str = "127.0.0.1",
    before: Sequence[str] = (),
) -> Iterator[Sshd]:
    """A server that lets `user` in with a key that lies in `folder`, with `options` of sshd_config besides.

    before: words that start it and become it.
    """
    program = "/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else need_program("sshd")
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in ("host", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)], check=True
        )
    allowed = home / ".ssh" / "authorized_keys"
    allowed.parent.mkdir(mode=0o755, exist_ok=True)
    allowed.write_text((folder / "key.pub").read_text())
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # it insists on that, for a user without rights
    port = free_port()
    settings = {
        "Port": str(port),
        "ListenAddress": address,
        "HostKey": str(folder / "host"),
        "AuthorizedKeysFile": str(allowed),
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "MaxStartups": "100",
        "LogLevel": "VERBOSE",
        **(options or {}),
    }
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    known = f"[{address}]:{port} {(folder / 'host.pub').read_text()}"
    (folder / "known_hosts").write_text(known)
    config = folder / "config"
    config.write_text(
        f"Host node\n  HostName {address}\n  Port {port}\n  User {user}\n  IdentityFile {folder}/key\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )
    with process([*before, program, "-D", "-e", "-f", str(folder / "sshd_config")], folder / "sshd.log") as child:
        server = Sshd(port, folder, config, allowed, child.pid)
        until(lambda: "Server listening" in server.log or child.poll() is not None, what=lambda: server.log)
        yield server


def children(*pids: int) -> list[int]:
    """Processes of sshd; one with root's rights watches a connection, its child with a user's rights holds it."""
    argv = ["pgrep", "-x", "sshd", "-P", ",".join(map(str, pids))]
    return [int(pid) for pid in subprocess.run(argv, capture_output=True, text=True).stdout.split()]


def kill_connection(pid: int) -> None:
    """Of the process that watches it: both are killed."""
    for each in (*children(pid), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


@contextlib.contextmanager
def master(server: Sshd) -> Iterator[str]:
    """The control socket of a master that leads to `node`."""
    with tempfile.TemporaryDirectory(prefix="hf-mux-", dir="/tmp") as folder:
        path = f"{folder}/m"
        argv = ["ssh", "-F", str(server.config), "-N", "-T", "-M", "-S", path, "-o", "BatchMode=yes", "node"]
        with process(argv, server.folder / "master.log") as child:
            until(lambda: Path(path).exists() or child.poll() is not None)
            assert child.poll() is None, (server.folder / "master.log").read_text()
            yield path
