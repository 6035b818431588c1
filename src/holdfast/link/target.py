"""Whom ssh would connect to under a name, asked of ssh itself: every rule of the user's configuration holds."""

from __future__ import annotations

import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from holdfast import runs
from holdfast.errors import HostUnreachable, UsageError
from holdfast.link import include

MOST_PATH_BYTES = 90  # a master binds the path with a dot and 16 more first; 108 is where a socket's path ends
_ANSWER_S = 10.0
_CREDENTIALS = ("identityfile", "certificatefile", "identityagent", "hostkeyalias", "userknownhostsfile")


@dataclass(frozen=True, slots=True)
class Target:
    """What decides which connection can be shared. `config` is another file than the user's own."""

    alias: str
    user: str
    host: str
    port: int
    jump: str = ""
    proxy_command: str = ""
    credentials: str = ""  # whom ssh takes us and the host for, as it tells them
    config: str = ""

    @property
    def key(self) -> str:
        """12 hexadecimal digits, the same for all names of one place reached in one way and with the same keys."""
        where = (self.user, self.host, str(self.port), self.jump, self.proxy_command, self.credentials)
        return hashlib.blake2b("\0".join(where).encode(errors="surrogateescape"), digest_size=6).hexdigest()

    @property
    def is_relayed(self) -> bool:
        """Whether our own relay carries it, which resumes after cuts."""
        return bool(re.search(r"\bholdfast\s+relay\s+connect\b", self.proxy_command))

    @property
    def options(self) -> list[str]:
        """What ssh is told before the name."""
        return ["-F", self.config] if self.config else []

    def __str__(self) -> str:
        return self.alias


def users_config() -> str:
    """The file to hand to ssh in place of the user's own configuration; "" for none."""
    return include.config()


def resolve(alias: str, *, config: str = "") -> Target:
    """Ask `ssh -G`; nothing is connected. Raises UsageError for a name that is none, HostUnreachable without ssh."""
    if not alias or alias.startswith("-") or any(c.isspace() for c in alias):
        raise UsageError(f"{alias!r} is not the name of a host")
    argv = ["ssh", *(["-F", config] if config else []), "-G", "--", alias]
    try:
        told = subprocess.run(
            argv, capture_output=True, text=True, errors="surrogateescape", timeout=_ANSWER_S, check=False
        )
    except FileNotFoundError:
        raise HostUnreachable("there is no program ssh", hint="install the OpenSSH client") from None
    except subprocess.TimeoutExpired:
        raise HostUnreachable(f"ssh -G {alias} did not end within {_ANSWER_S:g} s") from None
    if told.returncode:
        said = [line for line in told.stderr.splitlines() if ": terminating, " not in line]  # those say why
        raise HostUnreachable(
            f"ssh cannot be configured for {alias}: {said[0] if said else 'it said nothing'}",
            hint=f"mend what it names; ssh -G {alias} says when it is well",
        )
    values = dict(line.split(" ", 1) for line in told.stdout.splitlines() if " " in line)
    return Target(
        alias=alias,
        user=values["user"],
        host=values["hostname"],
        port=int(values["port"]),
        jump=_given(values.get("proxyjump", "")),
        proxy_command=_given(values.get("proxycommand", "")),
        credentials="\n".join(line for line in told.stdout.splitlines() if line.startswith(_CREDENTIALS)),
        config=config,
    )


def _given(value: str) -> str:
    return "" if value == "none" else value


def folder() -> Path:
    """Where the sockets of links lie: on a local file system, and of one HOLDFAST_HOME."""
    home = hashlib.blake2b(str(runs.home().absolute()).encode(), digest_size=4).hexdigest()
    return runs.runtime_home() / f"link-{home}"


def make_folder() -> Path:
    """Create it, 0700. Raises NotOurs when somebody else made it before us."""
    for each in (runs.runtime_home(), folder()):
        runs.make_private(each)
    return folder()


def control_path(target: Target, number: int = 0) -> Path:
    """Where the socket of our master with that number lies. Raises HostUnreachable where its path would be too long."""
    path = folder() / f"{target.key}.{number}"
    if len(str(path)) > MOST_PATH_BYTES:
        raise HostUnreachable(f"the control socket's path {path} has more than {MOST_PATH_BYTES} bytes")
    return path
