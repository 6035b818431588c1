"""What this process knows of the packs in a folder: which chunks they hold, and which of them it has read whole.

A chunk that lies in a known pack need not be written again, once every byte of that pack has been read and found right
by us: trust does not outlive the process. Footers alone say what there is to find.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from holdfast.checkpoint import pack
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.manifest import PackEntry
from holdfast.checkpoint.pack import Layout, Record
from holdfast.errors import HoldfastError
from holdfast.fsio import Disk


class KnownPacks:
    """The packs of one folder; for the one thread that writes there."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self._root, self._disk = root, disk
        self._held: dict[str, tuple[PackEntry, Layout]] = {}
        self._where: dict[str, tuple[PackEntry, Record]] = {}  # by chunk id
        self._verified_s: dict[str, float] = {}  # by pack name, `time.monotonic()`
        self._damaged: dict[str, str] = {}  # by pack name, a sentence
        self._present: set[str] = set()  # looked at since the last `notice`

    def notice(self, needed: Iterable[PackEntry]) -> None:
        """Learn what the packs hold that manifests name now, from their footers, and forget all others."""
        entries = {entry.name: entry for entry in needed}
        self._present.clear()
        for name in self._held.keys() - entries.keys():
            self.forget(name)
        self._damaged = {name: said for name, said in self._damaged.items() if name in entries}
        for name in entries.keys() - self._held.keys() - self._damaged.keys():
            self._learn(entries[name])

    def find(self, chunk_id: str) -> tuple[PackEntry, Record] | None:
        """Where a chunk lies that may be relied on: its pack is there at full length, and was read whole at least once.

        Reads the pack now when it was not.
        """
        found = self._where.get(chunk_id)
        return found if found is not None and self._is_sound(found[0]) else None

    def trust(self, entry: PackEntry, layout: Layout) -> None:
        """Every byte of the pack was just read, past any cache, and is right; its name is durable."""
        self._hold(entry, layout)
        self._damaged.pop(entry.name, None)
        self._verified_s[entry.name] = time.monotonic()

    def verify(self, entry: PackEntry) -> None:
        """Read the pack whole, now. Raises Damaged, OSError, and its chunks will be written again by the next save."""
        try:
            layout = read_back(self._root, self._disk, entry)
        except (Damaged, OSError) as error:
            self.forget(entry.name)
            self._damaged[entry.name] = str(error)
            raise
        self._disk.sync_folder(pack.path(self._root, entry.name).parent)  # whoever wrote it may have died before that
        self.trust(entry, layout)

    def verified_s(self, name: str) -> float | None:
        """`time.monotonic()` of the last time the pack was read whole; None for never."""
        return self._verified_s.get(name)

    @property
    def damaged(self) -> Mapping[str, str]:
        """What was found damaged and has not been found right since: a sentence by pack name."""
        return self._damaged

    def layout(self, name: str) -> Layout | None:
        """The footer of a pack, None when it is not known."""
        held = self._held.get(name)
        return held and held[1]

    def forget(self, name: str) -> None:
        """Do not offer this pack any more: it is damaged, or going."""
        held = self._held.pop(name, None)
        self._verified_s.pop(name, None)
        for record in held[1].records if held is not None else ():
            where = self._where.get(record.id)  # None when two packs held it and the other was forgotten before
            if where is not None and where[0].name == name:
                del self._where[record.id]

    def _learn(self, entry: PackEntry) -> None:
        try:
            with closing(self._disk.open(pack.path(self._root, entry.name), cached=False)) as file:
                self._hold(entry, pack.read_layout(file, entry.name))
        except (HoldfastError, OSError) as error:
            self._damaged[entry.name] = str(error)

    def _hold(self, entry: PackEntry, layout: Layout) -> None:
        self._held[entry.name] = (entry, layout)
        for record in layout.records:
            self._where[record.id] = (entry, record)

    def _is_sound(self, entry: PackEntry) -> bool:
        if entry.name in self._verified_s and entry.name in self._present:
            return True
        try:
            if entry.name not in self._verified_s:
                self.verify(entry)
            with pack.opened(self._disk, self._root, entry.name, entry.size_bytes):
                self._present.add(entry.name)
        except (Damaged, OSError):
            self.forget(entry.name)
            return False
        return True


def read_back(root: Path, disk: Disk, entry: PackEntry) -> Layout:
    """Read a pack from the medium and check every byte; what it holds. Raises Damaged, OSError."""
    with pack.opened(disk, root, entry.name, entry.size_bytes, cached=False) as file:
        return pack.check_whole(file, entry.name)
