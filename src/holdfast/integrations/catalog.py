"""What a checkpoint folder holds under which name.

Several manifests may carry one name for a moment: the newest counts, the others are about to go. A manifest is
immutable and named by its hash, so each is parsed once a process.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.checkpoint import manifest, survey
from holdfast.checkpoint.canonical import Damaged, is_count
from holdfast.checkpoint.manifest import Manifest
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.fsio import DISK, get

FILE = "file"  # the name is that of one file
FOLDER = "folder"  # the name is that of a folder of files
TENSORS = "tensors"  # of `torch.distributed.checkpoint`, not files


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed checkpoint. `files`: length in bytes by file name, none for `TENSORS`."""

    name: str
    kind: str
    files: dict[str, int]
    info: CheckpointInfo


class Catalog:
    """The names in the folder at `root`, as of each call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._parsed: dict[
            str, Entry | str | None
        ] = {}  # by manifest file: a sentence when damaged, None when not ours
        self._lock = threading.Lock()

    def entries(self) -> dict[str, Entry]:
        """By name, what is committed. Raises OSError."""
        found, _ = self._look()
        return {entry.name: entry for entry in sorted(found, key=lambda entry: entry.info.position)}

    def all(self) -> list[Entry]:
        """Also those that a newer one of the same name has replaced. Raises OSError."""
        return self._look()[0]

    def find(self, name: str) -> Entry:
        """The checkpoint called `name`. Raises FileNotFoundError; Damaged when it may be one that cannot be read."""
        found, damaged = self._look()
        mine = [entry for entry in found if entry.name == name]
        if mine:
            return max(mine, key=lambda entry: entry.info.position)
        raise self.absent(name, damaged)

    def absent(self, what: str, damaged: list[str] | None = None) -> Exception:
        """The error for `what` not being there: a damaged manifest may be what it was."""
        damaged = self._look()[1] if damaged is None else damaged
        if damaged:
            return Damaged(f"{what!r} is not among the checkpoints of {self.root} that can be read: {damaged[0]}")
        return FileNotFoundError(f"there is no {what!r} in {self.root}")

    def _look(self) -> tuple[list[Entry], list[str]]:
        """Every readable checkpoint of ours, and what is wrong with the others."""
        within = manifest.folder(self.root)
        names = [name for name in DISK.list(within) if manifest.position_of(name) is not None]
        with self._lock:
            self._parsed = {name: self._parsed[name] for name in names if name in self._parsed}
            for name in names:
                if name not in self._parsed or isinstance(self._parsed[name], str):
                    self._parse(within / name)
            parsed = list(self._parsed.values())
        entries = [one for one in parsed if isinstance(one, Entry)]
        return entries, [one for one in parsed if isinstance(one, str)]

    def _parse(self, path: Path) -> None:
        try:
            found = manifest.parse(path.name, get(DISK, path, limit_bytes=manifest.MAX_MANIFEST_BYTES))
            self._parsed[path.name] = _entry(found, path)
        except FileNotFoundError:
            self._parsed.pop(path.name, None)
        except (Damaged, OSError, OverflowError) as error:
            self._parsed[path.name] = str(error)


def _entry(found: Manifest, path: Path) -> Entry | None:
    """Raises Damaged for names that lead out of the folder: whoever copies it would write where they lead."""
    name, kind = found.head.get("name"), found.head.get("kind")
    if not isinstance(name, str) or kind not in (FILE, FOLDER, TENSORS):
        return None
    files: dict[str, int] = {}
    for part in found.ranks:
        files |= _files(part["table"].get("files", {}), name)
    for path_below in (name, *files):
        if path_below.startswith("/") or "\0" in path_below or {".", ".."} & set(path_below.split("/")):
            raise Damaged(f"checkpoint {name[:100]!r} has the file {path_below[:100]!r}, which would lie elsewhere")
    return Entry(name, kind, files, survey.info_of(found, path))


def _files(found: Any, name: str) -> dict[str, int]:
    if not isinstance(found, dict) or not all(is_count(size) for size in found.values()):
        raise Damaged(f"checkpoint {name!r} has a malformed list of files")
    return found


_catalogs: dict[Path, Catalog] = {}
_guard = threading.Lock()


def of(root: Path) -> Catalog:
    """This process's catalog of the folder at `root`."""
    with _guard:
        return _catalogs.setdefault(root, Catalog(root))
