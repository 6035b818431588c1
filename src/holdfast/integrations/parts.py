"""Parts of a checkpoint, each written by one process before anybody knows whether there will be a checkpoint.

A part is a folder of its own, `staging/<hash of the name>/<id>/`: packs, `part.json` once it is whole, and `held`,
which its writer keeps locked for as long as it lives. Nothing in there is seen by readers. A commit moves the packs to
where the manifest names them; a part whose writer is gone is removed by the next commit or the next save of that name.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from holdfast.checkpoint import canonical
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.known import KnownPacks, read_back
from holdfast.checkpoint.manifest import PackEntry
from holdfast.checkpoint.pack import Layout, Record
from holdfast.checkpoint.packer import Packer, hash_of
from holdfast.fsio import DISK, flock, get
from holdfast.integrations import catalog
from holdfast.integrations.places import STAGING

_MAX_PART_BYTES = 64 << 20
_WORTH_BYTES = 64 << 10  # smaller ones (the frame around each tensor of a file) would keep alive packs of dead tensors
_HELD, _SEALED = "held", "part.json"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A whole part. `chunks` as in a manifest, `pack` an index into `packs`; `about` is what its writer says of it."""

    folder: Path
    owner: str  # the process that wrote it
    number: int  # later ones of one owner are higher
    about: dict[str, Any]
    chunks: list[dict[str, Any]]
    packs: list[PackEntry]


class Part:
    """A part being written by this process. `add` chunks, then `seal`; else `drop`."""

    def __init__(self, root: Path, name: str, *, is_shared: bool = False) -> None:
        """is_shared: one of several that make up the checkpoint `name`. Raises OSError."""
        self.root, self.name, self.is_shared = root, name, is_shared
        self.is_sealed = False
        self.folder, self._held = _claim(root, name)
        self._pid = os.getpid()
        with _lock:
            self._known = _known.setdefault(root, _Known(root))
        self._known.notice()
        self._into = Folder(self.folder)
        for needed in ("packs", "tmp"):
            (self.folder / needed).mkdir()
        self._packer = Packer(self._into)
        self._rows: list[tuple[dict[str, Any], PackEntry | int, int]] = []  # chunk, pack or its number here, offset
        _mine.append(self)

    def add(self, stored: memoryview, size_bytes: int, *, kind: str, tensors: list[dict[str, Any]]) -> None:
        """One chunk: `size_bytes` of `stored` and zeros up to a whole block, not to be changed before `seal` returns.

        Already stored in some checkpoint of the folder, and not tiny, it is not written again. Raises OSError.
        """
        chunk_id = hash_of(stored, size_bytes)
        chunk = {"id": chunk_id, "bytes": size_bytes, "kind": kind, "tensors": tensors}
        known = self._known.find(chunk_id) if size_bytes >= _WORTH_BYTES else None
        if known is not None:
            self._rows.append((chunk, known[0], known[1].offset))
        else:
            place = self._packer.add(stored, size_bytes, chunk_id=chunk_id)
            self._rows.append((chunk, place.pack, place.offset))

    def seal(self, about: dict[str, Any]) -> None:
        """Make the part whole and durable, and read it back. Raises Damaged, OSError."""
        with self._packer:
            packs = self._packer.finish()
        for entry in packs:
            self._known.trust(entry, read_back(self.folder, DISK, entry))
        index = {entry: at for at, entry in enumerate(packs)}
        chunks = []
        for chunk, place, offset in self._rows:
            number = place if isinstance(place, int) else index.setdefault(place, len(index))
            chunks.append({**chunk, "pack": number, "offset": offset})
        document = {
            "owner": _owner(),
            "number": _next_number(),
            "about": about,
            "chunks": chunks,
            "packs": [{"name": entry.name, "bytes": entry.size_bytes} for entry in index],
        }
        (self.folder / "tmp" / _SEALED).write_bytes(canonical.encode_checked(document))
        (self.folder / "tmp" / _SEALED).replace(self.folder / _SEALED)  # of use only while we live: no fsync
        self.is_sealed = True

    def drop(self) -> None:
        """Remove it, if it is still there and ours."""
        if not self.is_ours:
            return
        with contextlib.suppress(ValueError):
            _mine.remove(self)
        self._packer.__exit__(None, None, None)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._held)

    @property
    def is_ours(self) -> bool:
        """Whether this process made it, and not the one that it was forked from."""
        return self._pid == os.getpid()

    @property
    def is_gone(self) -> bool:
        """Whether a commit has taken it."""
        return not (self.folder / _HELD).exists()

    def __enter__(self) -> Part:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.drop()


class _Known:
    """What this process may rely on of the packs that checkpoints in `root` name already; for any of its threads."""

    def __init__(self, root: Path) -> None:
        self._packs, self._catalog = KnownPacks(root, DISK), catalog.of(root)
        self._lock = threading.Lock()

    def notice(self) -> None:
        """Look at what manifests name now."""
        with self._lock:
            self._packs.notice(entry for one in self._catalog.all() for entry in one.info.packs)

    def find(self, chunk_id: str) -> tuple[PackEntry, Record] | None:
        """Where a chunk lies, in a pack that was read whole."""
        with self._lock:
            return self._packs.find(chunk_id)

    def trust(self, entry: PackEntry, layout: Layout) -> None:
        """The pack was just read whole, where it lies now."""
        with self._lock:
            self._packs.trust(entry, layout)


def _claim(root: Path, name: str) -> tuple[Path, int]:
    """A new folder for a part, and the descriptor that holds it."""
    while True:
        folder = within(root, name) / secrets.token_hex(16)
        folder.mkdir(mode=0o700, parents=True)
        with contextlib.suppress(FileNotFoundError):  # removed again before it was held
            descriptor = os.open(folder / _HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            flock(descriptor, wait_s=math.inf)
            if _is_same(folder / _HELD, descriptor):
                return folder, descriptor
            os.close(descriptor)


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def within(root: Path, name: str) -> Path:
    """Where the parts of the checkpoint `name` are."""
    return root / STAGING / canonical.digest(name.encode())[:32]


def sealed(root: Path, name: str) -> list[Sealed]:
    """The whole parts of `name`, whoever wrote them. Raises Damaged, OSError."""
    found = (read(within(root, name) / one) for one in DISK.list(within(root, name)))
    return [one for one in found if one is not None]


def read(folder: Path) -> Sealed | None:
    """The part at `folder`; None while it is not whole, or gone. Raises Damaged, OSError."""
    what = f"part {folder.name}"
    try:
        raw = get(DISK, folder / _SEALED, limit_bytes=_MAX_PART_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = canonical.decode_checked(raw, what)
    packs = [PackEntry(one["name"], one["bytes"]) for one in found["packs"]]
    if not all(canonical.is_hash(entry.name) for entry in packs):
        raise canonical.Damaged(f"{what} names a pack as none is called")
    return Sealed(folder, found["owner"], found["number"], found["about"], found["chunks"], packs)


def remove(part: Sealed) -> None:
    """Take a part away, whoever holds it."""
    shutil.rmtree(part.folder, ignore_errors=True)


def sweep(root: Path, name: str | None = None) -> None:
    """Remove every part whose writer is gone: of `name`, or of all names. Raises OSError."""
    names = [within(root, name)] if name is not None else [root / STAGING / key for key in DISK.list(root / STAGING)]
    for key in names:
        if not key.is_dir():
            continue
        for folder in (key / one for one in DISK.list(key)):
            _sweep_one(folder)
        with contextlib.suppress(OSError):  # another process is about to put a part there, or has
            key.rmdir()


def _sweep_one(folder: Path) -> None:
    try:
        lock = DISK.lock(folder / _HELD)
    except FileNotFoundError:
        _sweep_remains(folder)
        return
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _sweep_remains(folder: Path) -> None:
    """A folder that nobody holds yet is empty; one with other things in it was being removed when that was cut off."""
    there = DISK.list(folder)
    if there and _HELD not in there:
        shutil.rmtree(folder, ignore_errors=True)
    elif not there:
        with contextlib.suppress(OSError):  # it is held by now
            folder.rmdir()


_known: dict[Path, _Known] = {}
_mine: list[Part] = []  # of this process; a fork's child has them too, and no right to them
_token: tuple[int, str] = (0, "")
_numbers = 0
_lock = threading.Lock()


def _owner() -> str:
    """Names this process, anew after a fork."""
    global _token  # noqa: PLW0603 (one a process)
    with _lock:
        if _token[0] != os.getpid():
            _token = (os.getpid(), secrets.token_hex(8))
        return _token[1]


def _next_number() -> int:
    global _numbers  # noqa: PLW0603 (one a process)
    with _lock:
        _numbers += 1
        return _numbers


def release(root: Path, keep: str | None = None) -> None:
    """Let go of this process's parts in `root` that a commit has taken, or that are whole and of another name.

    A process has one save of several parts under way; when the next begins, what is left of the last will never be
    committed.
    """
    for part in [one for one in _mine if one.root == root and one.is_ours and one.is_sealed and one.is_shared]:
        if part.is_gone or part.name != keep:
            part.drop()
