"""What is on the disk after the power has failed: a recording played up to a moment, and then what was durable by then.

Three ways for it to come back, all allowed by POSIX: `posix`: nothing that was not fsynced, names included. `journal`:
every name, as a journal of metadata keeps them, but of contents only what was fsynced (ext4 `data=writeback`).
`chance`: of each block and each name that was not fsynced either the old or the new.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.syscalls import (
    Create,
    Link,
    MakeFolder,
    Operation,
    Remove,
    Rename,
    Resize,
    Said,
    SyncBegin,
    SyncEnd,
    Write,
)  # fmt: skip

BLOCK = 4096
WAYS = ("posix", "journal", "chance")


@dataclass(eq=False, slots=True)
class File:
    now: bytearray = field(default_factory=bytearray)
    durable: bytes = b""


@dataclass(eq=False, slots=True)
class Folder:
    now: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)


class Medium:
    """A tree below `root`, as programs see it and as the medium has it."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self.top = Folder()
        self._pending: dict[int, list[tuple[File | Folder, object]]] = {}

    def play(self, operations: Sequence[Operation]) -> None:
        """Do all of it."""
        for operation in operations:
            self._do(operation)

    def sync(self) -> None:
        """Time has passed: everything is on the medium."""
        for each in _walk(self.top):
            _keep(each, _content(each))

    def write_out(self, way: str, chance: random.Random) -> None:
        """Make `root` hold what is there after the power came back; it must not exist."""
        _write(Path(self._root), self.top, way, chance)

    def is_folder_sync(self, number: int) -> bool:
        """Whether the fsync that is about to end is one of a folder alone."""
        pending = self._pending.get(number, [])
        return len(pending) == 1 and isinstance(pending[0][0], Folder)

    def _do(self, operation: Operation) -> None:
        match operation:
            case Create(path, truncates):
                found = self._folder(path).now.setdefault(_name(path), File())
                if truncates and isinstance(found, File):
                    found.now.clear()
            case Write(path, offset, data):
                file = self._file(path)
                if file is not None:
                    _grow(file.now, offset)
                    file.now[offset : offset + len(data)] = data
            case Resize(path, size, only_grows):
                file = self._file(path)
                if file is not None:
                    _grow(file.now, size)
                    if not only_grows:
                        del file.now[size:]
            case Rename(source, target):
                self._folder(target).now[_name(target)] = self._folder(source).now.pop(_name(source))
            case Link(source, target):
                self._folder(target).now[_name(target)] = self._folder(source).now[_name(source)]
            case Remove(path):
                self._folder(path).now.pop(_name(path), None)
            case MakeFolder(path):
                if path != self._root:
                    self._folder(path).now[_name(path)] = Folder()
            case SyncBegin(number, path):
                found = [self.at(path)] if path else list(_walk(self.top))
                self._pending[number] = [(each, _content(each)) for each in found if each is not None]
            case SyncEnd(number):
                for each, content in self._pending.pop(number, []):
                    _keep(each, content)
            case Said():
                pass

    def at(self, path: str) -> File | Folder | None:
        """What programs see there."""
        found: File | Folder | None = self.top
        for name in path[len(self._root) :].split("/")[1:]:
            found = found.now.get(name) if isinstance(found, Folder) else None
        return found

    def _file(self, path: str) -> File | None:
        """None for one that was removed while it was open."""
        found = self.at(path)
        return found if isinstance(found, File) else None

    def _folder(self, path: str) -> Folder:
        found = self.at(path.rpartition("/")[0])
        if not isinstance(found, Folder):
            raise LookupError(f"the recording uses {path}, whose folder it never saw")
        return found


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _grow(data: bytearray, size: int) -> None:
    data.extend(bytes(max(0, size - len(data))))


def _walk(folder: Folder) -> list[File | Folder]:
    found: list[File | Folder] = [folder]
    for each in folder.now.values():
        found += _walk(each) if isinstance(each, Folder) else [each]
    return found


def _content(each: File | Folder) -> object:
    return bytes(each.now) if isinstance(each, File) else dict(each.now)


def _keep(each: File | Folder, content: object) -> None:
    each.durable = content  # type: ignore[assignment]


def _write(path: Path, each: File | Folder, way: str, chance: random.Random) -> None:
    if isinstance(each, File):
        path.write_bytes(_survives(each, way, chance))
        return
    path.mkdir()
    names = each.durable if way == "posix" else each.now
    if way == "chance":
        both = {**each.durable, **each.now}
        names = {}
        for name in both:
            kept = (each.durable if chance.random() < 0.5 else each.now).get(name)
            if kept is not None:
                names[name] = kept
    for name, inside in names.items():
        _write(path / name, inside, way, chance)


def _survives(file: File, way: str, chance: random.Random) -> bytes:
    """What a file holds: sizes of what was never fsynced are zero where data is, as with delayed allocation."""
    if way != "chance":
        return file.durable
    size = len(file.durable) if chance.random() < 0.5 else len(file.now)
    old, new = file.durable.ljust(size, b"\0"), bytes(file.now).ljust(size, b"\0")
    blocks = ((old if chance.random() < 0.5 else new)[at : at + BLOCK] for at in range(0, size, BLOCK))
    return b"".join(blocks)[:size]
