"""The checkpoint folder as a whole: its parts, its format file, the hint at the newest commit.

`packs/ manifests/ pins/ leases/ tmp/ format.json latest.json`. Only the archiver opens it for writing; everybody may
read at any time.
"""

from __future__ import annotations

from pathlib import Path

from holdfast.checkpoint import canonical, pack
from holdfast.checkpoint.canonical import Damaged, NewerFormat, is_count
from holdfast.fsio import DISK, Disk, get, put

VERSION = 1
FOLDERS = ("packs", "manifests", "pins", "leases", "tmp")
_LIMIT_BYTES = 4096


class Folder:
    """A checkpoint folder open for writing. One at a time per folder."""

    def __init__(self, root: Path, disk: Disk = DISK) -> None:
        self.root = root
        self.disk = disk
        self._durable: set[Path] = set()

    def open(self) -> list[str]:
        """Make what is missing, finish what a power cut could still undo, clear `tmp/`.

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

    def put(self, name: str, data: bytes, *, replace: bool = False) -> None:
        """A small file at `name` below the folder, durable when this returns. Raises OSError, FileExistsError."""
        target = self.root / name
        temporary = self.root / "tmp" / target.name
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

    def clear_temporary(self) -> None:
        """Remove what a save that did not end left in `tmp/`."""
        for name in self.disk.list(self.root / "tmp"):
            self.disk.remove(self.root / "tmp" / name)


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
