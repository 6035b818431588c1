"""Which tensors a manifest says a checkpoint holds, and where each part of them lies.

Pure. A manifest whose hash is right may still be an enemy's, or that of a bug: what would leave a gap in a tensor, or
write a part of it twice, is damage like any other, found before a byte is read.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from holdfast.checkpoint import boxes
from holdfast.checkpoint.boxes import Box
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.dtypes import item_bytes
from holdfast.checkpoint.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Stored:
    """One box of a tensor and where its bytes lie: `offset` into the chunk at `record` of pack number `pack`."""

    box: Box
    pack: int
    record: int
    chunk_id: str
    chunk_bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as stored: `boxes` in the order of the table; `kind` is frozen, trainable, optimizer or other."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    boxes: tuple[Stored, ...]

    @property
    def item_bytes(self) -> int:
        """Of one element."""
        return item_bytes(self.dtype)

    @property
    def size_bytes(self) -> int:
        """Of the whole tensor."""
        return boxes.whole(self.shape).count * self.item_bytes


def of_all(found: Manifest) -> dict[str, TensorInfo]:
    """Every whole tensor by its name: rank 0's where it has all of it, else what the ranks hold together.

    Raises Damaged when parts of one are missing, overlap or contradict each other.
    """
    return _together([of_rank(found, rank) for rank in range(len(found.ranks))])


def check_rank(found: Manifest, rank: int) -> None:
    """Raises Damaged unless the rank by itself has each element of each of its tensors once, as a slot holds them."""
    whole: dict[str, bool] = {}  # most are in one piece, which is seen without making anything of them
    for chunk in found.ranks[rank]["chunks"]:
        for entry in chunk["tensors"]:
            whole[entry["name"]] = entry["name"] not in whole and _is_in_one_piece(entry)
    doubtful = {name for name, sound in whole.items() if not sound}
    if doubtful:
        _refuse_torn(name for name, tensor in of_rank(found, rank, doubtful).items() if not _is_whole(tensor))


def _is_in_one_piece(entry: dict[str, Any]) -> bool:
    shape = entry["shape"]
    return bool(shape == entry["global_shape"] and math.prod(shape) * item_bytes(entry["dtype"]) == entry["bytes"])


def of_rank(found: Manifest, rank: int, names: Container[str] | None = None) -> dict[str, TensorInfo]:
    """The tensors that a rank's chunks name, or those of `names`, each with the boxes it has there. Raises Damaged."""
    tensors: dict[str, TensorInfo] = {}
    parts: dict[str, list[Stored]] = {}
    for chunk in found.ranks[rank]["chunks"]:
        for entry in chunk["tensors"]:
            if names is not None and entry["name"] not in names:
                continue
            name, box = entry["name"], Box(tuple(entry["index"]), tuple(entry["shape"]))
            if box.count * item_bytes(entry["dtype"]) != entry["bytes"]:
                raise Damaged(f"tensor {name[:100]!r} has {entry['bytes']} bytes for {box.count} of {entry['dtype']}")
            tensor = TensorInfo(name, entry["dtype"], tuple(entry["global_shape"]), chunk["kind"], ())
            if tensors.setdefault(name, tensor) != tensor:
                raise Damaged(f"tensor {name[:100]!r} is stored with two shapes, types or kinds")
            place = (chunk["pack"], chunk["offset"], chunk["id"], chunk["bytes"], entry["offset"])
            parts.setdefault(name, []).append(Stored(box, *place))
    return {name: replace(tensor, boxes=tuple(parts[name])) for name, tensor in tensors.items()}


def _together(ranks: Sequence[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """Whole tensors. A replica is taken from the first rank that has it, shards from all. Raises Damaged."""
    found: dict[str, TensorInfo] = {}
    whole: set[str] = set()
    for rank in ranks:
        for name, tensor in rank.items():
            if name not in whole:
                found[name] = _joined(found[name], tensor) if name in found else tensor
                if _is_whole(found[name]):
                    whole.add(name)
    _refuse_torn(name for name in found if name not in whole)
    return found


def _refuse_torn(names: Iterator[str]) -> None:
    for name in names:
        raise Damaged(f"tensor {name[:100]!r} is not stored whole: parts of it are missing or overlap")


def _is_whole(tensor: TensorInfo) -> bool:
    return boxes.fill([stored.box for stored in tensor.boxes], boxes.whole(tensor.shape))


def _joined(one: TensorInfo, other: TensorInfo) -> TensorInfo:
    """Both ranks' boxes, those that both have once."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        raise Damaged(f"tensor {one.name[:100]!r} is stored by two ranks with two shapes or types")
    known = {stored.box for stored in one.boxes}
    return replace(one, boxes=one.boxes + tuple(stored for stored in other.boxes if stored.box not in known))
