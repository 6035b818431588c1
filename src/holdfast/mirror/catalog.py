"""Which chunks a mirror holds and where: by its manifests, and by the footers of packs that no manifest names.

The latter were left by an attempt that was killed: nobody compared them with what was sent, so they are read whole
before anything relies on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.checkpoint import manifest, pack, survey
from holdfast.checkpoint.canonical import Damaged, is_hash
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.fsio import get
from holdfast.mirror.view import ROOT, Ranged, Stored, View, pack_key

RANGE_BYTES = 16 << 20  # of a pack at once: what a broken connection costs


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk lies: a pack, and the offset of its record in there."""

    entry: PackEntry
    offset: int


class Catalog:
    """The chunks of one view."""

    def __init__(self, view: View) -> None:
        """Reads manifests that are new, and the ends of unnamed packs. Raises StoreRefused."""
        self._view = view
        self._places: dict[str, Place] = {}
        self._unnamed: dict[str, Place] = {}
        self._trusted: dict[str, bool] = {}  # unnamed pack → read whole and found intact
        named: set[str] = set()
        for found in manifests(view):
            named |= {entry.name for entry in found.packs}
            self._note(found)
        for name, size in _packs(view):
            if name not in named:
                self._note_footer(PackEntry(name, size))

    def place(self, chunk_id: str) -> Place | None:
        """Where a chunk lies intact, None when it has to be sent."""
        found = self._places.get(chunk_id)
        if found is not None:
            return found
        left = self._unnamed.get(chunk_id)
        return left if left is not None and self._is_intact(left.entry) else None

    def add(self, chunk_id: str, place: Place) -> None:
        """A chunk that has been sent."""
        self._places[chunk_id] = place

    def _note(self, found: Manifest) -> None:
        for part in found.ranks:
            for chunk in part["chunks"]:
                entry = found.packs[chunk["pack"]]
                if self._view.has_pack(entry.name, entry.size_bytes):
                    self._places[chunk["id"]] = Place(entry, chunk["offset"])

    def _note_footer(self, entry: PackEntry) -> None:
        try:
            layout = pack.read_layout(Ranged(self._view.store, pack_key(entry.name), entry.size_bytes), entry.name)
        except (Damaged, FileNotFoundError):
            return
        for record in layout.records:
            self._unnamed[record.id] = Place(entry, record.offset)

    def _is_intact(self, entry: PackEntry) -> bool:
        if entry.name not in self._trusted:
            try:
                read_whole(self._view, entry)
            except (Damaged, FileNotFoundError):
                self._trusted[entry.name] = False
            else:
                self._trusted[entry.name] = True
        return self._trusted[entry.name]


def read_whole(view: View, entry: PackEntry) -> bytes:
    """Every byte of a pack of the mirror, checked. Raises Damaged, FileNotFoundError, StoreRefused."""
    file, data = Ranged(view.store, pack_key(entry.name), entry.size_bytes), bytearray(entry.size_bytes)
    for start in range(0, entry.size_bytes, RANGE_BYTES):
        piece = memoryview(data)[start : start + RANGE_BYTES]
        if file.read(start, [piece]) != len(piece):
            raise Damaged(f"pack {entry.name[:12]} on the mirror is shorter than its {entry.size_bytes} bytes")
    pack.check_whole(Stored(data), entry.name)
    return bytes(data)


def manifests(view: View) -> Iterator[Manifest]:
    """Every manifest of the mirror that can be read, oldest first."""
    for name in view.list(manifest.folder(ROOT)):
        if manifest.position_of(name) is not None:
            found = _read(view, name)
            if found is not None:
                yield found


def find(view: View, position: Position) -> Manifest | None:
    """The manifest at `position`, when it can be read and all its packs are there."""
    for path in survey.paths_at(ROOT, position, view):
        found = _read(view, path.name)
        if found is not None and is_complete(view, found.packs):
            return found
    return None


def is_complete(view: View, packs: tuple[PackEntry, ...]) -> bool:
    """Whether all of `packs` are there in full length."""
    return all(view.has_pack(entry.name, entry.size_bytes) for entry in packs)


def _read(view: View, name: str) -> Manifest | None:
    try:
        raw = get(view, manifest.folder(ROOT) / name, limit_bytes=manifest.MAX_MANIFEST_BYTES)
        return manifest.parse(name, raw)
    except (Damaged, FileNotFoundError, OverflowError):
        return None


def _packs(view: View) -> Iterator[tuple[str, int]]:
    for key, size in view.sizes.items():
        name = key.rpartition("/")[2].removesuffix(".hfp")
        if key == pack_key(name) and is_hash(name):
            yield name, size
