"""A program named nvidia-smi that tells what a test has written down: the border to a driver that is not here."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from holdfast import process
from tests.waiting import until

_PROGRAM = """#!/bin/sh
here=${0%/*}
echo "$*" >> "$here/asked"
[ ! -e "$here/hangs" ] || exec sleep 600
[ ! -e "$here/fails" ] || { cat "$here/fails"; exit 9; }
case "$1" in
  --query-gpu=uuid,mig*) cat "$here/mig" ;;
  --query-gpu=index*) cat "$here/devices" ;;
  --query-compute-apps=*) cat "$here/apps" ;;
  *) echo "unknown question $1"; exit 2 ;;
esac
"""


@contextmanager
def attempt_of(run: str, **more: str) -> Iterator[int]:
    """A process that bears the marks of an attempt of the run in that folder; its pid."""
    env = {**os.environ, "HOLDFAST_RUN_DIR": run, "HOLDFAST_ATTEMPT": "1", **more}
    with subprocess.Popen(["sleep", "600"], env=env) as child:
        try:
            until(lambda: process.environment(child.pid))  # empty for a moment after it was started
            yield child.pid
        finally:
            child.kill()


@dataclass
class FakeNvidia:
    """`count` devices of a kind of their own: the book is one for all tests of this machine at once."""

    folder: Path
    count: int = 2
    kind: str = field(default_factory=lambda: f"L{secrets.token_hex(4)}")

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.tell("apps", "")
        self.boot(self.count)
        (self.folder / "nvidia-smi").write_text(_PROGRAM)
        (self.folder / "nvidia-smi").chmod(0o755)

    def boot(self, count: int) -> None:
        """It tells of so many devices from now on, none of them divided."""
        self.count = count
        self.tell("devices", "".join(f"{n}, {self.uuid(n)}, NVIDIA {self.kind} 80GB, 81920, 4\n" for n in self.all))
        self.tell("mig", "".join(f"{self.uuid(n)}, Disabled\n" for n in self.all))

    @property
    def all(self) -> range:
        """The numbers of the devices."""
        return range(self.count)

    @property
    def env(self) -> dict[str, str]:
        """PATH with the program first."""
        return {"PATH": os.pathsep.join([str(self.folder), os.environ["PATH"]])}

    @property
    def looks(self) -> int:
        """How often somebody has asked who computes."""
        return (self.folder / "asked").read_text().count("--query-compute-apps")

    def uuid(self, number: int) -> str:
        """The name of a device that no other has."""
        return f"GPU-{self.kind}-{number}"

    def tell(self, name: str, text: str) -> None:
        """What it says from now on of `devices`, `apps` or `mig`; `hangs`: nothing; `fails`: that, and status 9."""
        draft = self.folder / f".{name}"
        draft.write_text(text)
        draft.replace(self.folder / name)

    def compute(self, who: Mapping[int, int]) -> None:
        """These alone compute from now on: number of a device → pid."""
        self.tell("apps", "".join(f"{self.uuid(n)}, {pid}, 1024\n" for n, pid in who.items()))
