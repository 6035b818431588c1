"""Files that are whole or absent: write to a temporary name, fsync, rename, fsync the folder.

The only module that renames. `replace` and `create` are for anybody with a small file; `Disk` is what the checkpoint
engine writes through, so that `testing.crashdisk` can stand in and stop at any operation.

Also the only one that locks: `Disk.lock` locks what is there, `lock_file` a file made for that, and `flock` one that
is open already. All are the kernel's flock, which the end of a process lets go.

Standard library only: the trainer side uses it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import mmap
import os
import secrets
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeAlias

Bytes: TypeAlias = "bytes | bytearray | memoryview | mmap.mmap"

BLOCK = 4096  # what O_DIRECT wants addresses, offsets and lengths to be multiples of
_PARTS_PER_CALL = 1024  # IOV_MAX
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_POLL_S = 0.02
_PID_BYTES = 20
_NO_SUCH_CALL = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)

_libc = ctypes.CDLL(None, use_errno=True)


class File(Protocol):
    """One open file. Every method raises OSError."""

    def append(self, parts: Sequence[Bytes]) -> None:
        """Write all of `parts`, one after the other, at the end."""
        ...

    def read(self, offset: int, parts: Sequence[memoryview]) -> int:
        """Fill `parts` from `offset` on; returns the bytes read, fewer than asked only at the end of the file."""
        ...

    def size(self) -> int:
        """Length in bytes."""
        ...

    def sync(self) -> None:
        """Return when contents and length would survive a power cut."""
        ...

    def close(self) -> None:
        """Let go; says nothing about durability."""
        ...


class Lock(Protocol):
    """A lock on a file or folder; the end of the process lets it go too."""

    def close(self) -> None:
        """Let it go."""
        ...


@dataclass(frozen=True, slots=True)
class About:
    """What a name stands for: a folder, or a file with its length."""

    is_folder: bool
    size_bytes: int
    modified_s: float  # unix seconds by the file system's clock; 0 where there is none


class Disk(Protocol):
    """What a checkpoint needs of a file system. Every method raises OSError."""

    def create(self, path: Path, *, cached: bool = True) -> File:
        """A new empty file. Not `cached`: written past the page cache where that can be. Raises FileExistsError."""
        ...

    def open(self, path: Path, *, cached: bool = True) -> File:
        """An existing file for reading and `sync`; not `cached`: what the medium holds, not what memory remembers."""
        ...

    def rename(self, source: Path, target: Path, *, replace: bool = False) -> None:
        """Give a file its final name. Raises FileExistsError when that is taken, unless `replace`."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in `folder` would survive a power cut."""
        ...

    def make_folder(self, folder: Path) -> None:
        """Make `folder` unless it is there, and make its name durable either way. Its parent must exist."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file; one that is not there is fine."""
        ...

    def remove_folder(self, folder: Path) -> None:
        """Remove an empty folder; one that is not there is fine."""
        ...

    def list(self, folder: Path) -> list[str]:
        """Sorted names in `folder`; none when it does not exist."""
        ...

    def about(self, path: Path) -> About | None:
        """What is there; None for nothing, and for what is neither a file nor, unless by a link, a folder."""
        ...

    def lock(self, path: Path, *, shared: bool = False) -> Lock | None:
        """The lock on a file or folder, None while somebody else's stands against it. Raises FileNotFoundError."""
        ...


class _RealFile:
    """A file descriptor; O_DIRECT is dropped by itself the first time the kernel refuses it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._end = 0

    def append(self, parts: Sequence[Bytes]) -> None:
        left = [memoryview(part).cast("B") for part in parts]
        try:
            while left:
                done = self._write(left[:_PARTS_PER_CALL])
                self._end += done
                left = _after(left, done)
        finally:
            for view in left:
                view.release()

    def _write(self, parts: list[memoryview]) -> int:
        try:
            return os.pwritev(self._descriptor, parts, self._end)
        except OSError as error:
            if not self._refused_direct(error):
                raise
            return os.pwritev(self._descriptor, parts, self._end)

    def read(self, offset: int, parts: Sequence[memoryview]) -> int:
        left, total = list(parts), 0
        while left:
            done = self._read(left[:_PARTS_PER_CALL], offset + total)
            if done == 0:
                break
            total += done
            left = _after(left, done)
        return total

    def _read(self, parts: list[memoryview], offset: int) -> int:
        try:
            return os.preadv(self._descriptor, parts, offset)
        except OSError as error:
            if not self._refused_direct(error):
                raise
            return os.preadv(self._descriptor, parts, offset)

    def _refused_direct(self, error: OSError) -> bool:
        """True when O_DIRECT was the reason, which is off from now on: an unaligned tail, or a picky file system."""
        import fcntl

        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            return False
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return True

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _after(parts: list[memoryview], done: int) -> list[memoryview]:
    """What is left of `parts` once their first `done` bytes are dealt with."""
    for index, part in enumerate(parts):
        if done < part.nbytes:
            return [part[done:], *parts[index + 1 :]]
        done -= part.nbytes
    return []


class Held:
    """An flock; it belongs to the descriptor, and to every process that has this from a fork."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def sign(self) -> None:
        """Say in the file who has it, in one write: whoever reads it meanwhile finds no half of a number."""
        os.pwrite(self.descriptor, f"{os.getpid():<{_PID_BYTES}}".encode(), 0)

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


class RealDisk:
    """The machine's own file system. Files are made 0600, folders 0700."""

    def create(self, path: Path, *, cached: bool = True) -> File:
        return _RealFile(_open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, direct=not cached))

    def open(self, path: Path, *, cached: bool = True) -> File:
        descriptor = _open(path, os.O_RDONLY | os.O_NONBLOCK, direct=not cached)  # a pipe would be waited for for ever
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if not cached:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return _RealFile(descriptor)

    def rename(self, source: Path, target: Path, *, replace: bool = False) -> None:
        if replace:
            source.replace(target)
        else:
            _rename_no_replace(source, target)

    def sync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_SUCH_CALL:  # some FUSE and SMB mounts have no fsync on folders: nothing to ask
                raise
        finally:
            os.close(descriptor)

    def make_folder(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self.sync_folder(folder.parent)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_folder(self, folder: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()

    def list(self, folder: Path) -> list[str]:
        try:
            return sorted(entry.name for entry in folder.iterdir())
        except FileNotFoundError:
            return []

    def about(self, path: Path) -> About | None:
        try:
            own, found = path.lstat(), path.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            return None
        if not (stat.S_ISDIR(own.st_mode) or stat.S_ISREG(found.st_mode)):
            return None
        return About(stat.S_ISDIR(own.st_mode), found.st_size, found.st_mtime)

    def lock(self, path: Path, *, shared: bool = False) -> Lock | None:
        descriptor = os.open(path, _lockable(path, shared=shared) | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            free = flock(descriptor, shared=shared)
            if free and not _is_at(path, descriptor):
                raise FileNotFoundError(errno.ENOENT, "it was replaced meanwhile", str(path))
        except BaseException:
            os.close(descriptor)
            raise
        if free:
            return Held(descriptor)
        os.close(descriptor)
        return None


def _lockable(path: Path, *, shared: bool) -> int:
    """Flags to open `path` with: NFS wants to be able to write what is locked exclusively."""
    return os.O_RDONLY if shared or path.is_dir() else os.O_RDWR


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still what `path` names. Raises FileNotFoundError when nothing is."""
    return os.path.samestat(os.fstat(descriptor), path.stat())


def lock_file(path: Path, *, wait_s: float = 0.0) -> Held:
    """The lock of `path`, a file that is made where there is none; `math.inf` waits for as long as it takes.

    Whoever has it may remove the file before letting it go: who waited for it then takes that of a new one.
    Raises BlockingIOError while somebody else has it, FileNotFoundError without its folder, OSError.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        held = Held(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            if not flock(held.descriptor, wait_s=max(0.0, deadline_s - time.monotonic())):
                raise BlockingIOError(f"{path} has been locked for {wait_s:g} s")
            is_there = _is_at(path, held.descriptor)
        except FileNotFoundError:
            is_there = False
        except BaseException:
            held.close()
            raise
        if is_there:
            return held
        held.close()


def signer(path: Path) -> int:
    """The process that has signed a lock file; 0 before one has. Raises OSError, ValueError."""
    return int(path.read_bytes()[:_PID_BYTES] or 0)


def flock(descriptor: int, *, shared: bool = False, wait_s: float = 0.0) -> bool:
    """Lock an open file; False when somebody else's lock still stands against it after `wait_s`. Raises OSError.

    A file system without locks gives every shared one and no exclusive one: then nothing is collected on it.
    """
    deadline_s = time.monotonic() + wait_s
    while not _flock(descriptor, shared=shared, wait=wait_s == math.inf):
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _flock(descriptor: int, *, shared: bool, wait: bool) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if not shared or error.errno not in (*_NO_SUCH_CALL, errno.ENOLCK):
            raise
    return True


DISK: Disk = RealDisk()


def _open(path: Path, flags: int, *, direct: bool) -> int:
    flags |= os.O_CLOEXEC
    if direct:
        try:
            return os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if flags & os.O_EXCL:  # the name is made before the flag is refused
                path.unlink(missing_ok=True)
    return os.open(path, flags, 0o600)


def _rename_no_replace(source: Path, target: Path) -> None:
    """renameat2(RENAME_NOREPLACE); link and unlink where the kernel or the file system lacks it."""
    if hasattr(_libc, "renameat2"):
        paths = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target))
        if _libc.renameat2(*paths, _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in _NO_SUCH_CALL:
            raise OSError(number, os.strerror(number), str(source), None, str(target))
    target.hardlink_to(source)
    source.unlink()


def rename_at(source: int, name: str, target: int, final: str) -> None:
    """Move `name` of one open folder to `final` of another, over a file or link that is there. Raises OSError."""
    os.rename(name, final, src_dir_fd=source, dst_dir_fd=target)


def exchange(one: Path, other: Path) -> bool:
    """Give each the other's name at once. False where the kernel or the file system cannot. Raises OSError."""
    if not hasattr(_libc, "renameat2"):
        return False
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    if _libc.renameat2(*paths, _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_SUCH_CALL:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def replace(path: Path, data: bytes) -> None:
    """Make `data` the contents of `path`, durably: whoever reads sees the old contents or the new. Raises OSError."""
    _put(path, data, replace=True)


def create(path: Path, data: bytes) -> None:
    """Like `replace`, but raises FileExistsError when there is something at `path`, which stays as it is."""
    _put(path, data, replace=False)


def _put(path: Path, data: bytes, *, replace: bool) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        put(DISK, temporary, data)
        DISK.rename(temporary, path, replace=replace)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what is raised
            DISK.remove(temporary)
        raise
    DISK.sync_folder(path.parent)


def put(disk: Disk, path: Path, data: bytes) -> None:
    """A new file at `path` with `data` in it, its contents durable, its name not yet. Raises OSError."""
    file = disk.create(path)
    try:
        file.append([data])
        file.sync()
    finally:
        file.close()


def get(disk: Disk, path: Path, *, limit_bytes: int, cached: bool = True) -> bytes:
    """All of a small file. Raises OSError; OverflowError, without reading, when it is longer than `limit_bytes`."""
    file = disk.open(path, cached=cached)
    try:
        size = file.size()
        if size > limit_bytes:
            raise OverflowError(f"{path.name} has {size} bytes, more than the {limit_bytes} allowed")
        data = bytearray(size)
        return bytes(data[: file.read(0, [memoryview(data)])])
    finally:
        file.close()
