"""What memory there is for slots: the machine's, that of each cgroup above us, and the file system of `memory_dir`.

Standard library only. Sources: proc(5) for MemAvailable; Documentation/admin-guide/cgroup-v1/memory.rst and
cgroup-v2.rst of Linux for the files and for what counts: a slot is charged as shared memory, which cannot be taken
back, while inactive file pages are given up before anybody is killed.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from holdfast import fsio
from holdfast.checkpoint import budget
from holdfast.checkpoint.budget import Limit

_MOUNTS = ("sys/fs/cgroup", "sys/fs/cgroup/memory", "sys/fs/cgroup/unified")
_FILES = (  # limit, use, the line of memory.stat that can be given up: version 2, its softer limit, version 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class Room:
    """Lets slots grow one at a time among all processes of a run, so that none counts on what another takes."""

    def __init__(self, lock: Path) -> None:
        """`lock`: a file of the run's own, made when it is needed."""
        self._lock = lock

    @contextlib.contextmanager
    def growth(self, descriptor: int, more_bytes: int) -> Iterator[None]:
        """As `Slot` asks for it. Raises OSError (ENOMEM) with the sentence that says which limit is met."""
        with fsio.lock_file(self._lock, wait_s=math.inf):
            refused = budget.refusal(more_bytes, limits(descriptor))
            if refused:
                raise OSError(errno.ENOMEM, refused)
            yield


def limits(descriptor: int, *, root: Path = Path("/"), pid: int | str = "self") -> list[Limit]:
    """Everything that bounds a slot of this process; `descriptor` is one, to ask its file system."""
    meminfo = _numbers(root / "proc/meminfo")
    total = meminfo["MemTotal:"] * 1024
    found = [Limit(name="this machine", total_bytes=total, available_bytes=meminfo["MemAvailable:"] * 1024)]
    for folder in _cgroups(root, pid):
        found += [limit for names in _FILES if (limit := _limit(folder, names, total)) is not None]
    system = os.fstatvfs(descriptor)
    if system.f_blocks:  # a memfd's has none: it is bounded by memory alone
        size, free = system.f_blocks * system.f_frsize, system.f_bavail * system.f_frsize
        found.append(Limit(name="memory_dir", total_bytes=size, available_bytes=free, reserve=False))
    return found


def _cgroups(root: Path, pid: int | str) -> list[Path]:
    """Our cgroups and all above them, as far as this namespace shows them."""
    found: dict[Path, None] = {}
    with contextlib.suppress(OSError):  # no such process, or no cgroups: nothing but the machine bounds us
        for line in (root / f"proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            for mount in _MOUNTS:
                own = PurePosixPath(path.lstrip("/"))
                found.update(dict.fromkeys(root / mount / one for one in (own, *own.parents)))
    return list(found)


def _limit(folder: Path, names: tuple[str, str, str], machine_bytes: int) -> Limit | None:
    """What a cgroup allows; None where there is none, or more than the machine has."""
    limit, used, spare = names
    try:
        total = int((folder / limit).read_text())
        current = int((folder / used).read_text())
        inactive = _numbers(folder / "memory.stat").get(spare, 0)
    except (OSError, ValueError):  # not there, or `max`
        return None
    if total >= machine_bytes:
        return None
    available = max(0, total - current + inactive)
    return Limit(name=f"cgroup {folder}", total_bytes=total, available_bytes=available)


def _numbers(path: Path) -> dict[str, int]:
    """The second word of each line by the first."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1}
