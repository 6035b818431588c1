"""What lies where: a bundle and a service's socket on a node, and what a laptop remembers of one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from holdfast import fsio, process, runs

CONTENTS = "bundle.json"  # in each bundle, written last
LAUNCHER = "holdfast"  # beside the bundles, starts the newest
VENV_LAUNCHER = "__PYVENV_LAUNCHER__"  # where a Python is, whatever -I says to it
PYTHON = "python.txt"  # in each Python that we have brought, written last
NO_BUNDLE = "dev"
REFUSED_S = 86400.0
_VERSION = 1
_MOST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Platform:
    """What a wheel has to fit."""

    python: str  # "3.11"
    machine: str  # "x86_64", as uname has it
    libc: str  # "glibc" or "musl"
    libc_version: str  # "2.36"

    def __str__(self) -> str:
        return f"Python {self.python} on {self.machine} with {self.libc} {self.libc_version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine where a bundle lies. Paths are of that machine."""

    alias: str
    key: str  # of the link that leads there
    uid: int
    home: str  # HOLDFAST_HOME, its real path
    python: str
    platform: Platform
    folder: str  # of the bundle
    bundle: str  # its hash
    socket: str  # where a service that was started from it listens
    made_of: str = field(default="", compare=False)  # `sources.fingerprint` of the holdfast here whose bundle it is
    refused_s: float = 0.0  # when its sshd opened no channel to that though somebody listened (unix time); 0: never

    def command(self, *words: str) -> list[str]:
        """What starts our holdfast there. Its Python heeds nothing that the user's start-up files say to Pythons."""
        return ["/usr/bin/env", "-u", VENV_LAUNCHER, self.python, "-I", f"{self.folder}/holdfast", *words]

    def refuses(self, now_s: float) -> bool:
        """Whether it is not worth trying: what an sshd allows may be another thing tomorrow."""
        return 0 <= now_s - self.refused_s < REFUSED_S


def own() -> str:
    """The hash of the bundle that this very code lies in, `dev` where it lies in none."""
    folder = Path(__file__).resolve().parents[2]
    return folder.name if (folder / CONTENTS).is_file() else NO_BUNDLE


def command() -> list[str]:
    """The words that start this holdfast from elsewhere, at a boot or later: a bundle goes when a newer one comes."""
    if own() == NO_BUNDLE:
        return process.command()
    return ["/bin/sh", str(Path(__file__).resolve().parents[3] / LAUNCHER)]


def service_socket(uid: int, home: str, bundle: str) -> str:
    """Where the service of user `uid` listens; `home` is the real path of its HOLDFAST_HOME."""
    digest = hashlib.blake2b(home.encode(), digest_size=4).hexdigest()
    return str(runs.runtime_home(uid) / f"service-{digest}-{bundle}.sock")


def remember(node: Node) -> None:
    """Keep what is known of a node. Raises OSError."""
    folder = make_folder("hosts")
    fsio.replace(
        folder / f"{node.key}.json", json.dumps({"version": _VERSION, **dataclasses.asdict(node)}, indent=1).encode()
    )


def remembered(key: str) -> Node | None:
    """What was known of the node last time; it may have changed since. None for nothing that can be read."""
    try:
        facts = json.loads(fsio.get(fsio.DISK, _memory(key), limit_bytes=_MOST_BYTES))
        if facts.pop("version") != _VERSION:
            return None
        return Node(**{**facts, "platform": Platform(**facts["platform"])})
    except (OSError, OverflowError, ValueError, KeyError, TypeError, AttributeError):
        return None


def forget(key: str) -> None:
    """Ask anew next time."""
    _memory(key).unlink(missing_ok=True)


def make_folder(name: str) -> Path:
    """A folder of HOLDFAST_HOME, 0700 as that. Raises OSError."""
    folder = runs.home() / name
    for each in (runs.home(), folder):
        each.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _memory(key: str) -> Path:
    return runs.home() / "hosts" / f"{key}.json"
