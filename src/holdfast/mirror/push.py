"""Send a checkpoint: what the mirror lacks, in packs of its own, each verified there; the manifest last.

Nothing is remembered between two attempts but what lies on the mirror (see `catalog`), so a kill costs the packs that
were on their way, and whoever reads sees the checkpoint whole or not at all.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from holdfast.checkpoint import canonical, codecs, dtypes, load, pack
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.checkpoint.pack import Layout, Record
from holdfast.checkpoint.parallel import ordered
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.fsio import BLOCK, DISK
from holdfast.mirror.catalog import Catalog, Place, find
from holdfast.mirror.throttle import Throttle
from holdfast.mirror.view import Stored, View, pack_key

UPLOADS = 3  # packs on their way at once
AHEAD = 16  # chunks read and compressed ahead of the pack that fills
PAYS_RATIO = 0.97  # a chunk is sent compressed when it becomes smaller than this
_WIDTHS = (1, 2, 4, 8)  # that `codecs` knows

Progress = Callable[[int, int], None]  # raw bytes done, raw bytes in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """`sent_bytes` went over the line in `packs` packs; 0 of both when all of it was there."""

    manifest: Manifest
    packs: int
    sent_bytes: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One chunk as it will be stored: the record without its offset, the payload padded."""

    record: Record
    payload: memoryview


def push(
    root: Path, info: CheckpointInfo, view: View, throttle: Throttle, *, allowed: Callable[[], object],
    compress: bool = True, progress: Progress = lambda done, total: None,
) -> Pushed:  # fmt: skip
    """Send the checkpoint `info` of the folder at `root` to the mirror seen in `view`.

    allowed: asked once more before the manifest; raises when another machine has taken over.
    Raises Damaged when the folder's own copy is, OSError, StoreRefused.
    """
    there = find(view, info.position)
    if there is not None:
        return Pushed(manifest=there, packs=0, sent_bytes=0)
    catalog = Catalog(view)
    with load.reading(root, info) as found:
        local = _LocalPacks(root, found)
        chunks = {chunk["id"]: chunk for part in found.ranks for chunk in part["chunks"]}
        missing = [chunk for name, chunk in chunks.items() if catalog.place(name) is None]
        total = sum(chunk["bytes"] for chunk in chunks.values())
        done = total - sum(chunk["bytes"] for chunk in missing)
        with _Sender(view, throttle, catalog) as sender:
            ready = ordered(lambda chunk: _prepared(local, chunk, compress=compress), missing, ahead=AHEAD)
            with closing(ready):
                for chunk in ready:
                    progress(done, total)
                    sender.add(chunk)
                    done += chunk.record.raw_bytes
            sender.finish()
        progress(total, total)
        made = _rewritten(found, catalog)
        allowed()
        view.store.put(f"manifests/{made.file_name}", made.raw)
    return Pushed(manifest=made, packs=sender.packs, sent_bytes=sender.sent_bytes)


def _prepared(local: _LocalPacks, chunk: dict[str, Any], *, compress: bool) -> _Chunk:
    raw = local.read(chunk)
    codec, stored = codecs.NONE, memoryview(raw)[: chunk["bytes"]]
    if compress and chunk["bytes"]:
        tried, smaller = codecs.encode(stored, _width(chunk))
        if len(smaller) < PAYS_RATIO * chunk["bytes"]:
            codec, stored = tried, memoryview(smaller)
    record = Record(id=chunk["id"], offset=0, raw_bytes=chunk["bytes"], stored_bytes=len(stored), codec=codec)
    return _Chunk(record, pack.padded(stored))


def _width(chunk: dict[str, Any]) -> int:
    """Bytes of an element of the chunk's largest tensor, for the byte planes."""
    largest = max(chunk["tensors"], key=lambda tensor: int(tensor["bytes"]), default=None)
    width = dtypes.item_bytes(largest["dtype"]) if largest is not None else 1
    return width if width in _WIDTHS else 8


def _rewritten(found: Manifest, catalog: Catalog) -> Manifest:
    """The checkpoint's manifest with the packs of the mirror in place of the folder's."""
    packs: dict[PackEntry, int] = {}
    ranks = []
    for part in found.ranks:
        chunks = []
        for chunk in part["chunks"]:
            place = catalog.place(chunk["id"])
            assert place is not None
            index = packs.setdefault(place.entry, len(packs))
            chunks.append({**chunk, "pack": index, "offset": place.offset})
        ranks.append({"table": part["table"], "chunks": chunks})
    return Manifest(
        position=found.position, parent=found.parent, base=found.base, packs=tuple(packs), ranks=tuple(ranks)
    )


class _LocalPacks:
    """The packs of one checkpoint of the folder; read by several threads."""

    def __init__(self, root: Path, found: Manifest) -> None:
        self._root, self._found = root, found
        self._records: dict[str, dict[int, Record]] = {}  # pack → its records that the checkpoint needs, by offset

    def read(self, chunk: dict[str, Any]) -> mmap.mmap:
        """A chunk's bytes and zeros up to a whole block, verified. Raises Damaged, OSError."""
        entry = self._found.packs[chunk["pack"]]
        name = entry.name
        with pack.opened(DISK, self._root, name, entry.size_bytes) as file:
            if name not in self._records:
                chunks = [(one["offset"], one["id"], one["bytes"]) for one in self._found.chunks_by_pack[chunk["pack"]]]
                found = pack.find(pack.read_layout(file, name), name, chunks)
                self._records[name] = {record.offset: record for record in found}
            record = self._records[name][chunk["offset"]]
            raw = mmap.mmap(-1, max(BLOCK, record.sink_bytes))
            with memoryview(raw) as whole, whole[: record.sink_bytes] as sink:
                pack.read_record(file, record, sink, f"pack {name[:12]}")
        return raw


class _Sender:
    """Gathers chunks into packs, and sends a pack while the next ones fill."""

    def __init__(self, view: View, throttle: Throttle, catalog: Catalog) -> None:
        self.packs = self.sent_bytes = 0
        self._view, self._throttle, self._catalog = view, throttle, catalog
        self._chunks: list[_Chunk] = []
        self._end = 0
        self._pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        self._busy: deque[Future[None]] = deque()

    def __enter__(self) -> _Sender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, chunk: _Chunk) -> None:
        """Put a chunk into the pack that fills. Raises what an earlier upload raised."""
        payloads = self._end - len(self._chunks) * BLOCK + chunk.record.padded_bytes
        limit = self._throttle.piece_bytes
        full = limit is not None and self._end + chunk.record.padded_bytes > limit
        if self._chunks and (full or not pack.room(len(self._chunks) + 1, payloads)):
            self._flush()
        self._chunks.append(_Chunk(replace(chunk.record, offset=self._end), chunk.payload))
        self._end = self._chunks[-1].record.end

    def finish(self) -> None:
        """Every chunk is on the mirror, verified, when this returns."""
        self._flush()
        while self._busy:
            self._busy.popleft().result()

    def _flush(self) -> None:
        if not self._chunks:
            return
        layout = Layout(tuple(chunk.record for chunk in self._chunks))
        payloads = [chunk.payload for chunk in self._chunks]
        self._chunks, self._end = [], 0
        while len(self._busy) >= UPLOADS:
            self._busy.popleft().result()
        self._busy.append(self._pool.submit(self._send, layout, payloads))

    def _send(self, layout: Layout, payloads: list[memoryview]) -> None:
        name, into = canonical.digest(layout.footer), Stored()
        pack.write(into, layout, payloads)
        entry = PackEntry(name, into.size())
        self._throttle.wait(entry.size_bytes)
        self._view.store.put(pack_key(name), into.data)
        for record in layout.records:
            self._catalog.add(record.id, Place(entry, record.offset))
        self.packs += 1
        self.sent_bytes += entry.size_bytes
