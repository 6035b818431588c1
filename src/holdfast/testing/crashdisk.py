"""A disk in memory whose power fails at the operation of your choice.

It keeps what a real one keeps: contents that were fsynced, names whose folder was fsynced. Of the rest `reboot` keeps
nothing, everything (a killed process, the machine lived on), or whatever a random number generator says, block by block
and name by name; a rename may then survive in one of its folders only, which is worse than real file systems are.

    disk = CrashDisk(stop_at=17)
    with pytest.raises(PowerCut):
        save(disk)
    load(disk.reboot(random.Random(1)))
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from holdfast.fsio import BLOCK, About, Bytes


class PowerCut(BaseException):
    """The machine is off. No `except Exception` of the code under test survives it."""


class _Inode:
    """A file's contents, as seen now and as on the medium."""

    def __init__(self, data: bytes = b"") -> None:
        self.now = bytearray(data)
        self.durable = bytes(data)


class _Folder:
    """Names, as seen now and as on the medium."""

    def __init__(self) -> None:
        self.now: dict[str, _Entry] = {}
        self.durable: dict[str, _Entry] = {}


_Entry: TypeAlias = _Inode | _Folder


class CrashDisk:
    """A `fsio.Disk`. Operations that change something are counted from 0; reading is free.

    stop_at: the operation at which the power fails; an append gets half way. capacity_bytes: ENOSPC past it.
    """

    def __init__(self, *, stop_at: int | None = None, capacity_bytes: int | None = None) -> None:
        self.stop_at = stop_at
        self.capacity_bytes = capacity_bytes
        self.operations: list[str] = []
        self._top = _Folder()
        self._locks: dict[int, list[_CrashLock]] = {}  # by what is locked; a reboot forgets them

    def create(self, path: Path, *, cached: bool = True) -> _CrashFile:
        self.count(f"create {path}")
        folder = self._folder(path.parent)
        if path.name in folder.now:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        inode = folder.now[path.name] = _Inode()
        return _CrashFile(self, inode, path)

    def open(self, path: Path, *, cached: bool = True) -> _CrashFile:
        return _CrashFile(self, self._inode(path), path)

    def rename(self, source: Path, target: Path, *, replace: bool = False) -> None:
        self.count(f"rename {source} {target}")
        inode, to = self._inode(source), self._folder(target.parent)
        if target.name in to.now and not replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        to.now[target.name] = inode
        del self._folder(source.parent).now[source.name]

    def sync_folder(self, folder: Path) -> None:
        self.count(f"sync_folder {folder}")
        found = self._folder(folder)
        found.durable = dict(found.now)

    def make_folder(self, folder: Path) -> None:
        self.count(f"make_folder {folder}")
        self._folder(folder.parent).now.setdefault(folder.name, _Folder())
        self.sync_folder(folder.parent)

    def remove(self, path: Path) -> None:
        self.count(f"remove {path}")
        self._folder(path.parent).now.pop(path.name, None)

    def remove_folder(self, folder: Path) -> None:
        self.count(f"remove_folder {folder}")
        if self.list(folder):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))
        self._folder(folder.parent).now.pop(folder.name, None)

    def list(self, folder: Path) -> list[str]:
        try:
            return sorted(self._folder(folder).now)
        except FileNotFoundError:
            return []

    def about(self, path: Path) -> About | None:
        """Its clock counts operations."""
        try:
            found = self._entry(path)
        except FileNotFoundError:
            return None
        is_folder = isinstance(found, _Folder)
        return About(is_folder, 0 if isinstance(found, _Folder) else len(found.now), float(len(self.operations)))

    def lock(self, path: Path, *, shared: bool = False) -> _CrashLock | None:
        held = self._locks.setdefault(id(self._entry(path)), [])
        if held and not (shared and all(one.shared for one in held)):
            return None
        held.append(_CrashLock(held, shared=shared))
        return held[-1]

    def reboot(self, chance: random.Random | None = None, *, keep_all: bool = False) -> CrashDisk:
        """The disk after a power cut now; `keep_all`: after the death of the process alone."""
        after = CrashDisk(capacity_bytes=self.capacity_bytes)
        after._top = _survived(self._top, chance, keep_all)
        return after

    def used_bytes(self) -> int:
        """Of all files together."""
        return _used(self._top)

    def count(self, operation: str) -> bool:
        """Write the operation down. Raises PowerCut when it is the last one, or past it."""
        self.operations.append(operation)
        if self.stop_at is not None and len(self.operations) > self.stop_at:
            raise PowerCut(operation)
        return True

    def _entry(self, path: Path) -> _Entry:
        found: _Entry = self._top
        for name in path.parts[1:]:
            if not isinstance(found, _Folder) or name not in found.now:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            found = found.now[name]
        return found

    def _folder(self, path: Path) -> _Folder:
        found = self._entry(path)
        if not isinstance(found, _Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return found

    def _inode(self, path: Path) -> _Inode:
        found = self._entry(path)
        if not isinstance(found, _Inode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return found


class _CrashFile:
    """A `fsio.File` on a CrashDisk."""

    def __init__(self, disk: CrashDisk, inode: _Inode, path: Path) -> None:
        self._disk, self._file, self._path = disk, inode, path

    def append(self, parts: Sequence[Bytes]) -> None:
        data = b"".join(bytes(part) for part in parts)
        capacity = self._disk.capacity_bytes
        if capacity is not None and self._disk.used_bytes() + len(data) > capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        try:
            self._disk.count(f"append {self._path}")
        except PowerCut:
            if len(self._disk.operations) - 1 == self._disk.stop_at:
                self._file.now += data[: len(data) // 2]
            raise
        self._file.now += data

    def read(self, offset: int, parts: Sequence[memoryview]) -> int:
        total = 0
        for part in parts:
            found = self._file.now[offset + total : offset + total + part.nbytes]
            part[: len(found)] = found
            total += len(found)
        return total

    def size(self) -> int:
        return len(self._file.now)

    def sync(self) -> None:
        self._disk.count(f"sync {self._path}")
        self._file.durable = bytes(self._file.now)

    def close(self) -> None:
        """Nothing to let go of."""


class _CrashLock:
    """A `fsio.Lock` on a CrashDisk."""

    def __init__(self, held: list[_CrashLock], *, shared: bool) -> None:
        self.shared, self._held = shared, held

    def close(self) -> None:
        self._held.remove(self)


def _survived(folder: _Folder, chance: random.Random | None, keep_all: bool) -> _Folder:
    after = _Folder()
    for name in sorted({*folder.now, *folder.durable}):
        entry = _pick(folder.now.get(name), folder.durable.get(name), chance, keep_all)
        if isinstance(entry, _Folder):
            after.now[name] = _survived(entry, chance, keep_all)
        elif entry is not None:
            after.now[name] = _Inode(_contents(entry, chance, keep_all))
    after.durable = dict(after.now)
    return after


def _pick(now: _Entry | None, durable: _Entry | None, chance: random.Random | None, keep_all: bool) -> _Entry | None:
    if keep_all or (chance is not None and chance.random() < 0.5):
        return now
    return durable


def _contents(inode: _Inode, chance: random.Random | None, keep_all: bool) -> bytes:
    """What is on the medium; blocks that were never fsynced may be there, be zeros, or be missing at the end."""
    if keep_all:
        return bytes(inode.now)
    if chance is None:
        return inode.durable
    kept = bytearray(inode.now[: chance.randint(len(inode.durable), max(len(inode.durable), len(inode.now)))])
    for start in range(len(inode.durable), len(kept), BLOCK):
        if chance.random() < 0.5:
            kept[start : start + BLOCK] = bytes(len(kept[start : start + BLOCK]))
    return bytes(kept)


def _used(folder: _Folder) -> int:
    return sum(len(entry.now) if isinstance(entry, _Inode) else _used(entry) for entry in folder.now.values())
