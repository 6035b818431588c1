"""A memory cgroup of our own, version 1 or 2, for tests of what happens in a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.needs import need
from tests.waiting import until

_KINDS = (("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control"),
          ("sys/fs/cgroup", "memory.max", "memory.events"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup with a limit; what is started through `argv` lives in it with all its descendants."""

    folder: Path
    events: str

    def argv(self, argv: list[str]) -> list[str]:
        """The command line that runs `argv` inside."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh", *argv]

    def oom_kills(self) -> int:
        """How often the kernel killed a member for want of memory."""
        lines = (self.folder / self.events).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


@contextmanager
def limited(size_bytes: int) -> Iterator[Group]:
    """A group that may use `size_bytes`; empty and gone afterwards. Skips the test where none can be made."""
    need(os.geteuid() == 0, "needs root to make a cgroup")
    made = _make(size_bytes)
    need(made is not None, "needs a memory cgroup that can be made")
    assert made is not None
    try:
        yield made
    finally:
        until(lambda: removed(made.folder), what="the cgroup empty")


def _make(size_bytes: int) -> Group | None:
    for mount, limit, events in _KINDS:
        folder = Path("/") / mount / f"holdfast-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(size_bytes))
        except OSError:
            folder.rmdir()
            continue
        return Group(folder, events)
    return None


def removed(folder: Path) -> bool:
    """Whether this group could be removed: it must be empty, and the last member that was killed quite gone."""
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
