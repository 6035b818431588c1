"""Where a rank's slots lie: in memory without a name or in files, each made, and found again by the next shim.

Standard library only, as the shim.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SLOTS_PER_RANK = 3


class Source(IntEnum):
    """Where a set comes from; a greater one beats a lesser."""

    FOUND = 0  # opened again, with doorbells that nobody else has
    KEPT = 1  # offered by archiver or supervisor
    RANK = 2  # handed out to a rank, or offered by one: what it uses


@dataclass(slots=True)
class Slots:
    """The descriptors of one rank, in `SlotSet.fds` order."""

    fds: list[int]
    source: Source

    def same_memory(self, fds: list[int]) -> bool:
        """Whether these are the same slots, whatever the doorbells."""
        return [os.fstat(each).st_ino for each in fds[2:]] == [os.fstat(each).st_ino for each in self.fds[2:]]


def bells() -> list[int]:
    """The doorbells of a rank: towards the archiver, and back."""
    return [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2)]


def new_memory(name: str, rank: int) -> list[int]:
    """Slots in memory for a rank; `name` as in `living_memory`."""
    made = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return [os.memfd_create(f"{name}-{rank}-{made}-{slot}") for slot in range(SLOTS_PER_RANK)]


def living_memory(name: str) -> dict[int, list[int]]:
    """Rank → its slots in memory, the newest set that any process of this user has open, opened again.

    name: how the memfds of a run begin; `-<rank>-<when made>-<slot>` follows. Sets that lack a slot are left out.
    """
    pattern = re.compile(rf"/memfd:{re.escape(name)}-(\d+)-(\d+)-(\d+) \(deleted\)")
    sets: dict[tuple[int, int], dict[int, int]] = {}  # rank and when made → slot → descriptor
    for path in _descriptors_of_all():
        with contextlib.suppress(OSError):  # it has ended, or hides what it has
            match = pattern.fullmatch(str(path.readlink()))
            if match is None:
                continue
            rank, made, slot = (int(number) for number in match.groups())
            found = sets.setdefault((rank, made), {})
            if slot not in found:
                found[slot] = _open_again(path, match[0])
    newest: dict[int, list[int]] = {}
    for (rank, _), found in sorted(sets.items(), reverse=True):
        if rank not in newest and sorted(found) == list(range(SLOTS_PER_RANK)):
            newest[rank] = [found[slot] for slot in range(SLOTS_PER_RANK)]
        else:
            for descriptor in found.values():
                os.close(descriptor)
    return newest


def _descriptors_of_all() -> Iterator[Path]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                yield from (process / "fd").iterdir()


def _open_again(path: Path, name: str) -> int:
    """Open what another process has open. Raises OSError, also when that is not `name`, or not ours, by now."""
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    if str(Path(f"/proc/self/fd/{descriptor}").readlink()) != name or os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise OSError(errno.EPERM, f"{path} is not {name} of ours")
    return descriptor


@dataclass(frozen=True, slots=True)
class SlotFiles:
    """Slots as files of `checkpoint.memory_dir`: they outlive every process, where a tmpfs outlives the container.

    Their names hold the run and the boot: after a crash of the machine a file on a disk may be half of what it was.
    """

    folder: Path
    run: str
    boot: str

    @classmethod
    def of(cls, run_dir: Path, runtime: Path, boot: str) -> SlotFiles | None:
        """As the plan says; None without a `memory_dir`, or with the memory tier off."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            memory = json.loads((run_dir / "plan.json").read_text())["checkpoint"]["memory"]
            if memory["dir"] and (memory["auto"] or memory["steps"] or memory["seconds"]):
                return cls(Path(memory["dir"]), f"holdfast-{runtime.name}", boot[:8])
        return None

    def open(self, rank: int) -> list[int]:
        """The files of a rank, made where they are missing. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        fds: list[int] = []
        try:
            for slot in range(SLOTS_PER_RANK):
                fds.append(_own_file(self.folder / f"{self.run}-{self.boot}-{rank:05d}-{slot}"))  # noqa: PERF401
        except OSError:
            for descriptor in fds:
                os.close(descriptor)
            self.remove(rank)
            raise
        return fds

    def ranks(self) -> list[int]:
        """Those that have files of this boot; the files of an earlier one are removed.

        In a folder like /dev/shm anybody can make files of such names: those of others are passed over.
        """
        name = re.compile(rf"{re.escape(self.run)}-(\w+)-(\d{{5,9}})-\d", re.ASCII)
        found = set()
        for path in self.folder.glob(f"{self.run}-*"):
            match = name.fullmatch(path.name)
            with contextlib.suppress(OSError):  # it has gone meanwhile
                if match is None or path.lstat().st_uid != os.geteuid():
                    continue
                if match[1] == self.boot:
                    found.add(int(match[2]))
                else:
                    path.unlink()
        return sorted(found)

    def remove(self, rank: int | None = None) -> None:
        """The files of one rank, or of all; their memory lives on while anyone holds a descriptor."""
        of_rank = "*" if rank is None else f"*-{rank:05d}-*"
        for path in self.folder.glob(f"{self.run}-{of_rank}"):
            with contextlib.suppress(OSError):  # another user's, or the folder is away, and its files with it
                path.unlink()


def _own_file(path: Path) -> int:
    """Open a file for reading and writing that is ours alone, made if it is missing. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1 or found.st_mode & 0o077:
        os.close(descriptor)
        raise OSError(errno.EPERM, f"{path.name} there is not a file of ours alone")
    return descriptor
