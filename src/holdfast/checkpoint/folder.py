"""The checkpoint folder as a whole: its parts, who may write, its format file, the hint at the newest commit.

`packs/ manifests/ pins/ leases/ tmp/ format.json latest.json`. One process owns it for writing, the archiver or a verb,
and holds the lock of the folder itself. Guests may put packs there meanwhile, each from a subfolder of `tmp/` that it
holds the lock of. Everybody may read at any time.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.checkpoint import canonical, pack
from holdfast.checkpoint.canonical import Damaged, NewerFormat, is_count
from holdfast.checkpoint.known import KnownPacks
from holdfast.errors import HoldfastError
from holdfast.fsio import DISK, Disk, Lock, get, put

if TYPE_CHECKING:
    from holdfast.checkpoint.survey import CheckpointInfo

VERSION = 1
FOLDERS = ("packs", "manifests", "pins", "leases", "tmp")
_LIMIT_BYTES = 4096


class FolderInUse(HoldfastError):
    """Two owners of a checkpoint folder would remove each other's packs."""

    exit_code = 11


class Folder:
    """A checkpoint folder to write to: `own` and `open` for its one owner, `join` for a guest."""

    def __init__(self, root: Path, disk: Disk = DISK) -> None:
        self.root = root
        self.disk = disk
        self.temporary = root / "tmp"
        self.known = KnownPacks(root, disk)
        self.parsed: dict[str, CheckpointInfo] = {}  # by file name: a manifest never changes
        self._durable: set[Path] = set()
        self._lock: Lock | None = None

    def own(self) -> None:
        """Be the one owner from now on; done once. Raises FolderInUse, OSError."""
        if self._lock is None:
            make_folders(self.disk, self.root)
            self._lock = self.disk.lock(self.root)
        if self._lock is None:
            raise FolderInUse(
                f"the archiver of another run uses {self.root}", hint="give each run a checkpoint.dir of its own"
            )

    def open(self) -> list[str]:
        """Make what is missing, finish what a power cut could still undo, clear `tmp/`. For the owner.

        Returns a sentence for each thing that was damaged. Raises NewerFormat, OSError.
        """
        said = format_problems(self.root, self.disk)
        make_folders(self.disk, self.root)
        for name in FOLDERS:
            self._make_durable(self.root / name)
            self.disk.sync_folder(self.root / name)
        self.clear_temporary()
        if said or "format.json" not in self.disk.list(self.root):
            self.put("format.json", _FORMAT, replace=True)
        return [f"{sentence}; it was written anew" for sentence in said]

    @contextmanager
    def owned(self) -> Iterator[Folder]:
        """This folder, owned and open, for as long as a verb writes. Raises FolderInUse, NewerFormat, OSError."""
        self.own()
        try:
            self.open()
            yield self
        finally:
            self.leave()

    def join(self) -> None:
        """Write packs beside the owner, whoever that is, until `leave`. Raises NewerFormat, OSError."""
        format_problems(self.root, self.disk)
        make_folders(self.disk, self.root / "tmp")
        while self._lock is None:  # once more if the owner cleared it away before we had the lock
            self.temporary = self.root / "tmp" / secrets.token_hex(8)
            self.disk.make_folder(self.temporary)
            with contextlib.suppress(FileNotFoundError):
                self._lock = self.disk.lock(self.temporary)

    def leave(self) -> None:
        """Give up what `own` or `join` took; a guest's packs that no manifest names may be collected from now on."""
        if self.temporary != self.root / "tmp":
            _remove_all(self.disk, self.temporary)
            self.temporary = self.root / "tmp"
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def put(self, name: str, data: bytes, *, replace: bool = False) -> None:
        """A small file at `name` below the folder, durable when this returns. Raises OSError, FileExistsError."""
        target = self.root / name
        temporary = self.temporary / target.name
        self.disk.remove(temporary)
        put(self.disk, temporary, data)
        if get(self.disk, temporary, limit_bytes=len(data), cached=False) != data:
            raise OSError(f"{temporary} reads back differently than written")
        self.disk.rename(temporary, target, replace=replace)
        self.disk.sync_folder(target.parent)

    def pack_path(self, name: str) -> Path:
        """Where the pack called `name` lies, its folder made durable."""
        path = pack.path(self.root, name)
        self._make_durable(path.parent)
        return path

    def _make_durable(self, folder: Path) -> None:
        if folder not in self._durable:
            self.disk.make_folder(folder)
            self._durable.add(folder)

    def clear_temporary(self) -> bool:
        """Remove what a writer that is gone left in `tmp/`. For the owner; whether there are no guests.

        What cannot be removed (a folder that somebody made there, a file that an NFS client has open) is in nobody's
        way and stays.
        """
        alone = True
        for name in self.disk.list(self.root / "tmp"):
            if not _GUEST.match(name):
                with contextlib.suppress(OSError):
                    self.disk.remove(self.root / "tmp" / name)
            elif (lock := self.disk.lock(self.root / "tmp" / name)) is None:
                alone = False
            else:
                with closing(lock), contextlib.suppress(OSError):
                    _remove_all(self.disk, self.root / "tmp" / name)
        return alone


_GUEST = re.compile(r"[0-9a-f]{16}\Z", re.ASCII)


def _remove_all(disk: Disk, guest: Path) -> None:
    for name in disk.list(guest):
        disk.remove(guest / name)
    disk.remove_folder(guest)


def make_folders(disk: Disk, folder: Path) -> None:
    """`folder` and whatever is missing above it."""
    try:
        disk.make_folder(folder)
    except FileNotFoundError:
        make_folders(disk, folder.parent)
        disk.make_folder(folder)


_FORMAT = canonical.encode_checked({"format": "holdfast", "version": VERSION})


def format_problems(root: Path, disk: Disk = DISK) -> list[str]:
    """What is wrong with format.json; nothing when it is absent. Raises NewerFormat, which is the reason it exists."""
    try:
        raw = get(disk, root / "format.json", limit_bytes=_LIMIT_BYTES)
        found = canonical.decode_checked(raw, "format.json")
    except FileNotFoundError:
        return []
    except (OSError, OverflowError, Damaged) as error:
        return [str(error)]
    if is_count(found.get("version"), least=VERSION + 1):
        raise NewerFormat("the checkpoint folder", found["version"])
    return [] if raw == _FORMAT else ["format.json is not that of holdfast"]


def hint_at_latest(folder: Folder, manifest_name: str) -> None:
    """Remember the newest commit, so that its disappearance is noticed. Nothing depends on it."""
    folder.put("latest.json", canonical.encode_checked({"manifest": manifest_name}), replace=True)


def hinted(root: Path, disk: Disk = DISK) -> str | None:
    """The manifest name given to `hint_at_latest` last; None when there is none or it is damaged."""
    try:
        found = canonical.decode_checked(get(disk, root / "latest.json", limit_bytes=_LIMIT_BYTES), "latest.json")
    except (OSError, OverflowError, Damaged):
        return None
    name = found.get("manifest")
    return name if isinstance(name, str) else None
