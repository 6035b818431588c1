"""What lies in the folder that is written to, and what is known of it. Nothing is changed here."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from holdfast.sync.decide import OTHER, Here, Options, Step, decide, twins
from holdfast.sync.known import Changing, Hashes, Record, signature
from holdfast.sync.manifest import FILE, FOLDER, LINK, Entry, folded
from holdfast.sync.tree import Tree
from holdfast.workspace.ignore import STAGING

_KINDS = {stat.S_IFREG: FILE, stat.S_IFDIR: FOLDER, stat.S_IFLNK: LINK}


class Ground:
    """One folder for one round. tree: None where there is no such folder yet."""

    def __init__(self, tree: Tree | None, place: Path) -> None:
        self._tree = tree
        self.hashes, self.record = Hashes(place), Record(place)

    def look(self, path: str, entry: Entry | None = None) -> Here | None:
        """What lies there. A file is read only where its size leaves a doubt. Raises OSError."""
        status = self._tree.status(path) if self._tree is not None else None
        if status is None or self._tree is None:
            return None
        kind, content = _KINDS.get(stat.S_IFMT(status.st_mode), OTHER), ""
        if kind == LINK:
            content = self._tree.points_to(path)
        elif kind == FILE and (path in self.record.of or (entry is not None and entry.size_bytes == status.st_size)):
            with suppress(Changing, PermissionError):  # then it is somebody's, and not what was brought
                content, status = self.hashes.read(self._tree, path, status)
        return Here(kind, stat.S_IMODE(status.st_mode), status.st_mtime_ns, signature(status), content)

    def steps(self, entries: Sequence[Entry], options: Options) -> list[Step]:
        """What is done with each."""
        here: dict[str, Here] = {}
        for entry in entries:
            may_be = not entry.above or entry.above in here  # folders come before what they hold
            if may_be and (found := self.look(entry.path, entry)) is not None:
                here[entry.path] = found
        same = twins(entries)
        if same and not self._folds():
            same = {}
        return decide(entries, here, self.record.of, options, same)

    def missing(self, entries: Sequence[Entry], source: str) -> dict[str, Here]:
        """What `source` has brought before, and does not tell of any more. What is gone here too is forgotten."""
        told = {entry.path for entry in entries}
        gone = [path for path, brought in self.record.of.items() if path not in told and brought.source == source]
        renamed = {folded(path) for path in told} if gone and self._folds() else set()
        found = {}
        for path in gone:
            there = self.look(path)
            if there is None or folded(path) in renamed:  # the same file, called in another way now
                del self.record.of[path]
            else:
                found[path] = there
        return found

    def _folds(self) -> bool:
        return self._tree is not None and self._tree.folds(STAGING)
