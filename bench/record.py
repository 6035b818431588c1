"""A short training of an engine under strace, and what it says about durability."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench import syscalls
from bench.engines import Engine
from bench.medium import File, Folder, Medium
from bench.syscalls import Create, Operation, Remove, Rename, Said, SyncEnd, Write

STEPS = 4
SIZE_BYTES = 1 << 20  # small: strace writes four characters a byte
HALF_BYTES = SIZE_BYTES // 2  # more than any log or index, less than any save
LONGEST_S = 300
_SEEN = {**os.environ, "USE_LIBUV": "0", "UV_USE_IO_URING": "0"}  # sockets of c10d and asyncio need no io_uring


class NotRecorded(Exception):
    """The engine's training failed under strace, or does what strace cannot see."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Operations below the folder, in order."""

    operations: list[Operation]
    size_bytes: int = SIZE_BYTES


def needs_strace() -> str:
    """Why nothing can be recorded here, or empty."""
    return "" if shutil.which("strace") else "strace is not installed"


def record(engine: Engine, folder: Path, aside: Path) -> Recorded:
    """Train in `folder`, which stays as it was left. Raises NotRecorded."""
    trace, diary = aside / "trace", aside / "recorded"
    argv = [*syscalls.STRACE, "-o", trace, sys.executable, "-W", "ignore", "-m", "bench.recorded"]
    argv += [engine.name, folder, diary, str(SIZE_BYTES), str(STEPS)]
    try:
        done = subprocess.run(argv, env=_SEEN, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired as late:
        raise NotRecorded(f"not done within {LONGEST_S} s") from late
    if done.returncode != 0:
        raise NotRecorded(done.stderr[-500:])
    made = syscalls.read(trace, folder, diary)
    trace.unlink()
    if made.unseen:
        raise NotRecorded(f"strace cannot see what is written by {', '.join(sorted(made.unseen))}")
    return Recorded(made.operations)


@dataclass(slots=True)
class Audit:
    """One training's durability: of what lies in the checkpoints' folder when a save is acknowledged."""

    saves: int = 0
    written_bytes: int = 0  # per save, wherever below the engine's folder
    undurable_bytes: int = 0  # of the last save
    undurable_names: int = 0
    folder_syncs: int = 0  # per save
    hazards: set[str] = field(default_factory=set)

    @property
    def undurable_share(self) -> float:
        """Of the bytes that a save writes."""
        return min(1.0, self.undurable_bytes / max(self.written_bytes, 1))


def audit(recorded: Recorded, folder: Path, checkpoints: Path) -> Audit:
    """Play it operation by operation; each acknowledged save is written back before the next begins."""
    made, medium = Audit(), Medium(folder)
    for operation in recorded.operations:
        _hazards(operation, medium, made)
        if isinstance(operation, Said) and operation.line.startswith("saved"):
            made.saves += 1
            made.undurable_bytes, made.undurable_names = _undurable(medium.at(str(checkpoints)))
            medium.sync()
        if isinstance(operation, Write):
            made.written_bytes += len(operation.data)
        if isinstance(operation, SyncEnd):
            made.folder_syncs += medium.is_folder_sync(operation.number)
        medium.play([operation])
    made.written_bytes //= max(made.saves, 1)
    made.folder_syncs //= max(made.saves, 1)
    return made


def _hazards(operation: Operation, medium: Medium, made: Audit) -> None:
    if not made.saves:
        return
    match operation:
        case Create(path, True) if _is_state(medium.at(path)):
            made.hazards.add("truncates the file that holds the last save")
        case Rename(source, _) if _undurable(medium.at(source))[0]:
            made.hazards.add("renames what was not fsynced")
        case Remove(path) if _is_state(medium.at(path)) and _undurable(medium.top)[0] >= HALF_BYTES:
            made.hazards.add("removes a save before the next is durable")
        case _:
            pass


def _is_state(found: File | Folder | None) -> bool:
    return isinstance(found, File) and len(found.now) >= HALF_BYTES


def _undurable(each: File | Folder | None) -> tuple[int, int]:
    """Bytes and names that a power cut may take."""
    if each is None:
        return 0, 0
    if isinstance(each, File):
        return (0 if each.durable == each.now else len(each.now)), 0
    inside = [_undurable(one) for one in each.now.values()]
    names = sum(each.durable.get(name) is not one for name, one in each.now.items())
    return sum(size for size, _ in inside), names + sum(count for _, count in inside)
