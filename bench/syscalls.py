"""What a program does to files below one folder, in order, out of an strace recording with the bytes in it.

    strace -f -y -xx -s 1000000000 --seccomp-bpf -e trace=… -o FILE COMMAND
    operations = read(FILE, folder, diary)

Offsets are followed for each open file description, through dup, fork and threads. Not seen: writes through a shared
mapping, and io_uring; `Recording.unseen` says where they occur, so that nobody trusts a recording that lacks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

CALLS = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,rename,renameat,"
    "renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,sync,syncfs,mmap,copy_file_range,"
    "sendfile,dup,dup2,dup3,fcntl,read,clone,clone3,fork,vfork,io_uring_setup"
)
STRACE = ("strace", "-f", "-y", "-xx", "-s", "1000000000", "--seccomp-bpf", "-qq", "-e", f"trace={CALLS}")


@dataclass(frozen=True, slots=True)
class Create:
    path: str
    truncates: bool


@dataclass(frozen=True, slots=True)
class Write:
    path: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    path: str
    size: int
    only_grows: bool = False


@dataclass(frozen=True, slots=True)
class Rename:
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Link:
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Remove:
    path: str


@dataclass(frozen=True, slots=True)
class MakeFolder:
    path: str


@dataclass(frozen=True, slots=True)
class SyncBegin:
    """An fsync, of a file or a folder, that has begun: what was written before this is durable at its end."""

    number: int
    path: str  # empty for sync(2) and syncfs(2)


@dataclass(frozen=True, slots=True)
class SyncEnd:
    number: int


@dataclass(frozen=True, slots=True)
class Said:
    """A line of the diary."""

    line: str


Operation: TypeAlias = (
    Create | Write | Resize | Rename | Link | Remove | MakeFolder | SyncBegin | SyncEnd | Said
)  # fmt: skip


@dataclass(slots=True)
class Recording:
    operations: list[Operation] = field(default_factory=list)
    unseen: set[str] = field(default_factory=set)  # "mmap PATH", "io_uring"


@dataclass(slots=True)
class _Description:
    """An open file description: what dup and fork share."""

    offset: int = 0
    appends: bool = False


_LINE = re.compile(r"^(\d+) +(.*)$", re.DOTALL)
_CALL = re.compile(
    r"^(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(?:<((?:\\x[0-9a-f]{2})*)>(?:\(deleted\))?)?.*$", re.DOTALL
)
_RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(r"^(-?\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")


def _bytes(hexed: str) -> bytes:
    return bytes.fromhex(hexed.replace("\\x", ""))


def read(path: Path, folder: Path, diary: Path) -> Recording:
    """The recording's operations below `folder`, and the diary's lines."""
    return _Reader(folder, diary).read(path)


class _Reader:
    def __init__(self, folder: Path, diary: Path) -> None:
        self._folder, self._diary = str(folder), str(diary)
        self._made = Recording()
        self._open: dict[tuple[int, int], _Description] = {}
        self._group: dict[int, int] = {}  # thread → the process whose descriptors it has
        self._cwd: dict[int, str] = {}
        self._sizes: dict[str, int] = {}
        self._begun: dict[int, str] = {}  # thread → the start of its unfinished call
        self._syncing: dict[int, int] = {}
        self._syncs = 0

    def read(self, path: Path) -> Recording:
        with path.open() as lines:
            for line in lines:
                matched = _LINE.match(line.rstrip("\n"))
                if matched:
                    self._line(int(matched[1]), matched[2])
        return self._made

    def _line(self, thread: int, text: str) -> None:
        if text.endswith(" <unfinished ...>"):
            self._begun[thread] = text.removesuffix(" <unfinished ...>")
            self._sync_begins(thread, self._begun[thread])
            return
        resumed = _RESUMED.match(text)
        if resumed:
            text = self._begun.pop(thread, "") + resumed[2]
        called = _CALL.match(text)
        if called is None:
            return
        name, inside, result = called[1], called[2], called[3]
        if result.startswith(("-", "?")):
            self._syncing.pop(thread, None)
            return
        act = getattr(self, f"_do_{name}", None)
        if act is not None:
            act(thread, inside, int(result, 0))

    # ---- descriptors

    def _process(self, thread: int) -> int:
        return self._group.get(thread, thread)

    def _described(self, thread: int, descriptor: int) -> _Description:
        return self._open.setdefault((self._process(thread), descriptor), _Description())

    def _do_clone(self, thread: int, inside: str, child: int) -> None:
        parent = self._process(thread)
        if "CLONE_FILES" in inside:
            self._group[child] = parent
            return
        for (process, descriptor), description in list(self._open.items()):
            if process == parent:
                self._open[child, descriptor] = description

    _do_clone3 = _do_fork = _do_clone

    def _do_vfork(self, thread: int, inside: str, child: int) -> None:
        self._do_clone(thread, "", child)

    def _do_dup(self, thread: int, inside: str, made: int) -> None:
        old = _FD.match(inside)
        if old:
            self._open[self._process(thread), made] = self._described(thread, int(old[1]))

    _do_dup2 = _do_dup3 = _do_dup

    def _do_fcntl(self, thread: int, inside: str, made: int) -> None:
        if "F_DUPFD" in inside:
            self._do_dup(thread, inside, made)

    # ---- paths

    def _path(self, inside: str) -> tuple[str, int]:
        """Of the first descriptor in the arguments."""
        found = _FD.match(inside)
        return (_bytes(found[2]).decode(), int(found[1])) if found and found[1] != "AT_FDCWD" else ("", -1)

    def _named(self, inside: str) -> list[str]:
        """Absolute paths in the arguments of a call that names files, each after its folder's descriptor if any."""
        named = []
        base = ""
        for part in re.finditer(r'(?:AT_FDCWD|\d+)<((?:\\x[0-9a-f]{2})*)>|"((?:\\x[0-9a-f]{2})*)"', inside):
            if part[2] is None:
                base = _bytes(part[1]).decode()
            else:
                name = _bytes(part[2]).decode()
                named.append(name if name.startswith("/") else f"{base}/{name}")
        return [re.sub(r"/(?:\./)*/*", "/", name).rstrip("/") for name in named]

    def _ours(self, path: str) -> bool:
        return path == self._folder or path.startswith(self._folder + "/")

    def _add(self, operation: Operation) -> None:
        self._made.operations.append(operation)

    # ---- what changes files

    def _do_openat(self, thread: int, inside: str, descriptor: int) -> None:
        path = self._named(inside)[0]
        flags = inside.rpartition('"')[2]
        self._open[self._process(thread), descriptor] = _Description(appends="O_APPEND" in flags)
        if self._ours(path) and ("O_CREAT" in flags or "O_TRUNC" in flags):
            if "O_TRUNC" in flags:
                self._sizes[path] = 0
            self._sizes.setdefault(path, 0)
            self._add(Create(path, truncates="O_TRUNC" in flags))

    _do_open = _do_openat

    def _do_write(self, thread: int, inside: str, count: int) -> None:
        path, descriptor = self._path(inside)
        description = self._described(thread, descriptor)
        offset = self._sizes.get(path, 0) if description.appends else description.offset
        self._write(path, offset, self._data(inside, count))
        description.offset = offset + count

    _do_writev = _do_write

    def _do_pwrite64(self, thread: int, inside: str, count: int) -> None:
        path, _ = self._path(inside)
        self._write(path, int(inside.rpartition(", ")[2], 0), self._data(inside, count))

    _do_pwritev = _do_pwrite64

    def _do_pwritev2(self, thread: int, inside: str, count: int) -> None:
        self._do_pwrite64(thread, inside.rpartition(", ")[0], count)

    def _data(self, inside: str, count: int) -> bytes:
        _, _, rest = inside.partition(">")
        return b"".join(_bytes(part[1]) for part in _STRING.finditer(rest))[:count]

    def _write(self, path: str, offset: int, data: bytes) -> None:
        if path == self._diary:
            for line in data.decode().splitlines():
                self._add(Said(line))
        elif self._ours(path):
            self._sizes[path] = max(self._sizes.get(path, 0), offset + len(data))
            self._add(Write(path, offset, data))

    def _do_read(self, thread: int, inside: str, count: int) -> None:
        self._described(thread, self._path(inside)[1]).offset += count

    def _do_lseek(self, thread: int, inside: str, offset: int) -> None:
        self._described(thread, self._path(inside)[1]).offset = offset

    def _do_ftruncate(self, thread: int, inside: str, result: int) -> None:
        self._resize(self._path(inside)[0], int(inside.rpartition(", ")[2], 0))

    def _do_truncate(self, thread: int, inside: str, result: int) -> None:
        self._resize(self._named(inside)[0], int(inside.rpartition(", ")[2], 0))

    def _do_fallocate(self, thread: int, inside: str, result: int) -> None:
        words = inside.rsplit(", ", 3)
        if words[1] == "0":
            self._resize(self._path(inside)[0], int(words[2], 0) + int(words[3], 0), only_grows=True)

    def _resize(self, path: str, size: int, *, only_grows: bool = False) -> None:
        if self._ours(path):
            self._sizes[path] = max(size, self._sizes.get(path, 0)) if only_grows else size
            self._add(Resize(path, size, only_grows))

    def _do_rename(self, thread: int, inside: str, result: int) -> None:
        source, target = self._named(inside)[:2]
        if self._ours(target) and self._ours(source):
            self._sizes = {
                (target + path[len(source) :] if path == source or path.startswith(source + "/") else path): size
                for path, size in self._sizes.items()
            }
            self._add(Rename(source, target))
        elif self._ours(target) or self._ours(source):
            self._made.unseen.add(f"rename across folders {source} {target}")

    _do_renameat = _do_renameat2 = _do_rename

    def _do_link(self, thread: int, inside: str, result: int) -> None:
        source, target = self._named(inside)[:2]
        if self._ours(target):
            self._sizes[target] = self._sizes.get(source, 0)
            self._add(Link(source, target))

    _do_linkat = _do_link

    def _do_unlink(self, thread: int, inside: str, result: int) -> None:
        path = self._named(inside)[0]
        if self._ours(path):
            self._sizes.pop(path, None)
            self._add(Remove(path))

    _do_unlinkat = _do_rmdir = _do_unlink

    def _do_mkdir(self, thread: int, inside: str, result: int) -> None:
        path = self._named(inside)[0]
        if self._ours(path):
            self._add(MakeFolder(path))

    _do_mkdirat = _do_mkdir

    # ---- what makes it durable

    def _sync_begins(self, thread: int, text: str) -> None:
        if text.startswith(("fsync(", "fdatasync(", "sync(", "syncfs(")):
            name, _, inside = text.partition("(")
            path = "" if name in ("sync", "syncfs") else self._path(inside)[0]
            if not path or self._ours(path):
                self._syncs += 1
                self._syncing[thread] = self._syncs
                self._add(SyncBegin(self._syncs, path))

    def _sync_ends(self, thread: int, text: str) -> None:
        if thread not in self._syncing:
            self._sync_begins(thread, text)
        if thread in self._syncing:
            self._add(SyncEnd(self._syncing.pop(thread)))

    def _do_fsync(self, thread: int, inside: str, result: int) -> None:
        self._sync_ends(thread, f"fsync({inside}")

    _do_fdatasync = _do_fsync

    def _do_sync(self, thread: int, inside: str, result: int) -> None:
        self._sync_ends(thread, "sync(")

    _do_syncfs = _do_sync

    # ---- what cannot be seen

    def _do_mmap(self, thread: int, inside: str, address: int) -> None:
        words = inside.split(", ")
        if "PROT_WRITE" in words[2] and "MAP_SHARED" in words[3]:
            path = self._path(words[4])[0]
            if self._ours(path):
                self._made.unseen.add(f"mmap {path}")

    def _do_copy_file_range(self, thread: int, inside: str, count: int) -> None:
        self._made.unseen |= {f"copy to {path}" for path in self._paths(inside) if self._ours(path)}

    _do_sendfile = _do_copy_file_range

    def _paths(self, inside: str) -> Iterator[str]:
        for found in re.finditer(r"\d+<((?:\\x[0-9a-f]{2})*)>", inside):
            yield _bytes(found[1]).decode()

    def _do_io_uring_setup(self, thread: int, inside: str, result: int) -> None:
        self._made.unseen.add("io_uring")
