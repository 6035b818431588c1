"""A short training of an engine under strace, and what it says about durability."""

from __future__ import annotations

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
LONGEST_S = 300


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
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LONGEST_S, check=False)
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
    """One training's durability. Bytes are those of files that exist when the last save is acknowledged."""

    saves: int = 0
    written_bytes: int = 0  # per save
    undurable_bytes: int = 0  # of the last save, when it is acknowledged
    undurable_names: int = 0
    folder_syncs: int = 0  # per save
    hazards: set[str] = field(default_factory=set)


def audit(recorded: Recorded, folder: Path) -> Audit:
    """Play it save by save and look at what is durable when the engine says so."""
    made, medium = Audit(), Medium(folder)
    for operation in recorded.operations:
        _hazards(operation, medium, made)
        if isinstance(operation, Said) and operation.line.startswith("saved"):
            made.saves += 1
            made.undurable_bytes, made.undurable_names = _undurable(medium.top)
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
    match operation:
        case Create(path, True) if isinstance(found := medium.at(path), File) and found.now:
            made.hazards.add("truncates a file that holds the last save")
        case Rename(source, _):
            found = medium.at(source)
            if found is not None and _undurable(found)[0]:
                made.hazards.add("renames what was not fsynced")
        case Remove(path) if made.saves and isinstance(found := medium.at(path), File) and found.durable:
            if not _durable_elsewhere(medium.top, made, found):
                made.hazards.add("removes a save before the next is durable")
        case _:
            pass


def _durable_elsewhere(top: Folder, made: Audit, removed: File) -> bool:
    return _undurable(top) == (0, 0) or len(removed.now) < SIZE_BYTES // 2


def _undurable(each: File | Folder) -> tuple[int, int]:
    """Bytes and names that a power cut may take."""
    if isinstance(each, File):
        same = len(each.durable) == len(each.now)
        return (0 if same and each.durable == each.now else len(each.now)), 0
    inside = [_undurable(one) for one in each.now.values()]
    names = sum(each.durable.get(name) is not one for name, one in each.now.items())
    return sum(size for size, _ in inside), names + sum(count for _, count in inside)
