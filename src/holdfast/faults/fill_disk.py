"""No room for checkpoints: the save under way must fail and say so, training must go on, and saving must work again.

A disk that others use is never filled. Where the checkpoint folder is a file system of its own smaller than 1 GiB
(a quota'd or test volume, never `/`), the free space is really taken, by one reserved file in the folder's `tmp/`.
Everywhere else the archiver alone is denied: its soft RLIMIT_FSIZE is lowered, so every write past a few KiB of a
file ends in EFBIG, on its own descriptors only and reversible. The program cannot tell that from a full disk but by
the error's name.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from holdfast.events import CheckpointCommitted, CheckpointFailed
from holdfast.faults.base import CannotInject, Look, Target, Undo, Verdict, processes, trains

NAME = "fill_disk"
SAYS = "no room for checkpoints; saves fail and say so, training goes on, saving works again afterwards"

SMALL_BYTES = 1 << 30
_ROOM_BYTES = 4096  # what the archiver's own log may still grow by


def inject(target: Target) -> Undo:
    """Take the room away and ask for a save; undo gives it back and asks again."""
    folder = Path(target.plan()["checkpoint"]["dir"])
    give_back = fill(folder) if is_small(folder) else _deny_archiver(target)
    target.save()

    def undo() -> None:
        give_back()
        target.save()

    return undo


def bitten(before: Look, now: Look) -> bool:
    """A save has failed."""
    return any(isinstance(event, CheckpointFailed) for event in now.since(before))


def recovered(before: Look, now: Look) -> Verdict:
    """After the failed save another was committed, by a trainer that went on throughout."""
    since = now.since(before)
    failed = [at for at, event in enumerate(since) if isinstance(event, CheckpointFailed)]
    if not failed:
        return Verdict(False, "no save has failed: there was room enough")
    committed = [event for event in since[failed[0] :] if isinstance(event, CheckpointCommitted)]
    if not committed:
        return Verdict(False, "nothing was saved since")
    going_on = trains(before, now)
    return Verdict(going_on.ok, f"save failed, then step {committed[-1].step} was saved; {going_on.evidence}")


def is_small(folder: Path) -> bool:
    """Whether `folder` lies on a file system of its own that is small enough to fill."""
    found = os.statvfs(folder)
    own = folder.stat().st_dev != Path("/").stat().st_dev
    return own and found.f_blocks * found.f_frsize < SMALL_BYTES


def fill(folder: Path) -> Undo:
    """Reserve all free space of the file system of `folder`; undo frees it."""
    (folder / "tmp").mkdir(mode=0o700, exist_ok=True)
    reserve = folder / "tmp" / f"drill-{os.getpid()}"
    descriptor = os.open(reserve, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        found = os.statvfs(folder)
        _grow(descriptor, found.f_bavail * found.f_frsize, found.f_frsize)
    finally:
        os.close(descriptor)
    return lambda: reserve.unlink(missing_ok=True)


def _grow(descriptor: int, wanted: int, block: int) -> None:
    """As far as it goes: what does not fit is halved until a block is left."""
    size = 0
    while wanted >= block:
        with contextlib.suppress(OSError):
            os.posix_fallocate(descriptor, size, wanted)
            size += wanted
            continue
        wanted //= 2


def _deny_archiver(target: Target) -> Undo:
    found = processes(target.run).get("archiver")
    if found is None:
        raise CannotInject(f"{target.run.id} has no live archiver to deny room to")
    soft, hard = resource.prlimit(found.pid, resource.RLIMIT_FSIZE)
    log = target.run.archiver_log
    allowed = (log.stat().st_size if log.exists() else 0) + _ROOM_BYTES
    resource.prlimit(found.pid, resource.RLIMIT_FSIZE, (allowed, hard))

    def give_back() -> None:
        if processes(target.run).get("archiver") == found:
            resource.prlimit(found.pid, resource.RLIMIT_FSIZE, (soft, hard))

    return give_back
