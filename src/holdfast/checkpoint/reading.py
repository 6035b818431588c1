"""Read parts of a checkpoint: any box of any tensor, verified, without torch and without a trainer.

Only the chunks that a part lies in are read; each is held against its hash before a byte of it is handed out. Memory
stays within a few chunks, whatever the checkpoint's size; the caller brings the memory that it wants filled. While a
checkpoint is open its manifest is locked, so that no retention takes it away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast.checkpoint import boxes, contents, load, manifest, pack
from holdfast.checkpoint.boxes import Box
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.contents import Stored, TensorInfo
from holdfast.checkpoint.manifest import Manifest, PackEntry
from holdfast.checkpoint.parallel import ordered
from holdfast.checkpoint.scratch import Scratch
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.fsio import DISK, Disk

_scratch = Scratch()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A box of a tensor and the writable memory, of exactly its size, that it goes to in C order."""

    tensor: TensorInfo
    box: Box
    into: memoryview


class Checkpoint:
    """One checkpoint, open for reading. `tensors` and `state` cost no disk read; `read…` verifies what it reads."""

    def __init__(self, root: Path, info: CheckpointInfo, found: Manifest, disk: Disk = DISK) -> None:
        self.root, self.info, self.manifest = root, info, found
        self._disk = disk

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every whole tensor by its name: rank 0's where it has all of it, else what the ranks hold together.

        Raises Damaged when parts of one are missing or contradict each other.
        """
        return contents.of_all(self.manifest)

    def of_rank(self, rank: int) -> Mapping[str, TensorInfo]:
        """What one rank stored, which may be parts of tensors. Raises Damaged."""
        if not 0 <= rank < self.info.world:
            raise Damaged(f"{self.info} has {self.info.world} ranks, there is none for rank {rank}")
        return contents.of_rank(self.manifest, rank)

    def state(self, rank: int = 0) -> dict[str, Any]:
        """The typed tree of one rank, in which tensors are named; `checkpoint.state.decode` makes objects of it."""
        tree: dict[str, Any] = self.manifest.ranks[rank]["table"]["state"]
        return tree

    def read_into(self, name: str, buffer: Any) -> None:
        """All of tensor `name`, in C order, into writable memory of its size. Raises KeyError, Damaged, OSError."""
        tensor = self.tensors[name]
        self.read([Wanted(tensor, boxes.whole(tensor.shape), _bytes_of(buffer))])

    def read(self, wanted: Iterable[Wanted]) -> None:
        """Fill all of `wanted`, each chunk read once.

        Raises Damaged, OSError, ValueError for memory of another size.
        """
        by_pack: dict[int, dict[int, list[tuple[Stored, Wanted]]]] = {}
        for one in wanted:
            for stored in _needed(one):
                by_pack.setdefault(stored.pack, {}).setdefault(stored.record, []).append((stored, one))
        for index in sorted(by_pack):
            self._read_pack(self.manifest.packs[index], by_pack[index])

    def stream(self, tensors: Iterable[TensorInfo], *, batch_bytes: int = 64 << 20) -> Iterator[Wanted]:
        """All of `tensors`, one after the other in C order, as boxes in memory that holds about `batch_bytes`.

        What comes out is good until the next is asked for. Raises Damaged, OSError.
        """
        for batch in batches(tensors, batch_bytes):
            filled = [
                Wanted(tensor, box, memoryview(bytearray(box.count * tensor.item_bytes))) for tensor, box in batch
            ]
            self.read(filled)
            yield from filled

    def _read_pack(self, entry: PackEntry, wanted: Mapping[int, list[tuple[Stored, Wanted]]]) -> None:
        chunks = [(one.record, one.chunk_id, one.chunk_bytes) for parts in wanted.values() for one, _ in parts]
        with pack.opened(self._disk, self.root, entry.name, entry.size_bytes) as file:
            records = pack.find(pack.read_layout(file, entry.name), entry.name, chunks)

            def one(record: pack.Record) -> None:
                payload = _scratch.take(record.sink_bytes)
                pack.read_record(file, record, payload, f"pack {entry.name[:12]}")
                for stored, target in wanted[record.offset]:
                    _hand_out(payload, stored, target)

            with closing(ordered(one, records)) as done:
                for _ in done:
                    pass


@contextlib.contextmanager
def open_checkpoint(root: Path, info: CheckpointInfo, disk: Disk = DISK) -> Iterator[Checkpoint]:
    """The checkpoint `info` of the folder `root`, kept from being removed meanwhile. Raises Damaged, OSError."""
    with load.reading(root, info, disk) as found:
        yield Checkpoint(root, replace(info, path=manifest.folder(root) / found.file_name), found, disk)


def batches(tensors: Iterable[TensorInfo], batch_bytes: int) -> Iterator[list[tuple[TensorInfo, Box]]]:
    """Boxes that make up all of `tensors` in the order of their memory, about `batch_bytes` together. Pure."""
    batch: list[tuple[TensorInfo, Box]] = []
    size = 0
    for tensor in tensors:
        whole = boxes.whole(tensor.shape)
        for box in boxes.cut(whole, tensor.shape, tensor.item_bytes, most_bytes=batch_bytes, row_bytes=batch_bytes):
            batch.append((tensor, box))
            size += box.count * tensor.item_bytes
            if size >= batch_bytes:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _needed(one: Wanted) -> list[Stored]:
    """The stored boxes that hold some of it. Raises Damaged when they do not hold all of it."""
    size = one.box.count * one.tensor.item_bytes
    if one.into.nbytes != size:
        raise ValueError(f"{size} bytes of tensor {one.tensor.name!r} were to go into {one.into.nbytes}")
    needed = [stored for stored in one.tensor.boxes if stored.box.meet(one.box) is not None]
    if not boxes.fill([stored.box for stored in needed], one.box):
        raise Damaged(f"tensor {one.tensor.name[:100]!r} does not hold all of {one.box}")
    return needed


def _hand_out(payload: memoryview, stored: Stored, target: Wanted) -> None:
    item = target.tensor.item_bytes
    with payload[stored.offset : stored.offset + stored.box.count * item] as part:
        boxes.copy(part, stored.box, target.into, target.box, item)


def _bytes_of(buffer: Any) -> memoryview:
    return memoryview(buffer).cast("B")
