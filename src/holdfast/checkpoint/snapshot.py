"""Where each tensor of a state lies in a slot, and the copy there and back.

The layout depends on names, kinds, shapes and dtypes only, so it is planned once and kept. Small tensors share chunks
with neighbours of their kind; large ones are cut on whole rows of the global tensor, so that equal weights make equal
chunks whatever stands around them.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from holdfast.checkpoint.slots import HEADER_BYTES, PAGE, Slot, align
from holdfast.checkpoint.state import UnreadableState, dtype_named

SMALL_BYTES = 256 << 10  # below: shares a chunk
CHUNK_BYTES = 2 << 20  # what a chunk should hold
ROW_BYTES = 4 << 20  # a row above this is split
TENSOR_ALIGN = 64


@dataclass(frozen=True, slots=True)
class Spec:
    """What the layout needs to know of one tensor; `kind` is frozen, trainable, optimizer or other."""

    name: str
    kind: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, contiguous in C order. `offset` counts from the chunk, `source` from the tensor, in bytes."""

    spec: Spec
    index: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    source: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """`offset` counts from the start of the slot and is a multiple of the page."""

    offset: int
    size_bytes: int
    kind: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Layout:
    """All chunks; `end` is the first free byte behind them, a multiple of the page."""

    chunks: tuple[Chunk, ...]
    end: int

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """The `chunks` of the slot table."""
        return [_chunk_table(chunk) for chunk in self.chunks]

    @cached_property
    def gaps(self) -> list[tuple[int, int]]:
        """(offset, length) of every byte between HEADER_BYTES and `end` that no tensor fills."""
        found, at = [], HEADER_BYTES
        for chunk in self.chunks:
            for piece in chunk.pieces:
                start = chunk.offset + piece.offset
                if start > at:
                    found.append((at, start - at))
                at = start + piece.size_bytes
        if self.end > at:
            found.append((at, self.end - at))
        return found


def plan(specs: Sequence[Spec]) -> Layout:
    """The layout of `specs`, in their order within each kind."""
    shared: dict[str, _Shared] = {}
    groups: list[tuple[str, list[Piece]]] = []
    for spec in specs:
        size = math.prod(spec.shape) * spec.dtype.itemsize
        if size >= SMALL_BYTES:
            groups.extend((spec.kind, [piece]) for piece in _cut(spec))
            continue
        group = shared.get(spec.kind)
        if group is None or group.end + size > CHUNK_BYTES:
            group = shared[spec.kind] = _Shared([])
            groups.append((spec.kind, group.pieces))
        group.add(Piece(spec, (0,) * len(spec.shape), spec.shape, align(group.end, TENSOR_ALIGN), 0, size))
    return _placed(groups)


class _Shared:
    """A chunk that still takes tensors; `end` is how far it is filled, in bytes."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces, self.end = pieces, 0

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.end = piece.offset + piece.size_bytes


def _placed(groups: list[tuple[str, list[Piece]]]) -> Layout:
    chunks, at = [], HEADER_BYTES
    for kind, pieces in groups:
        size = max(pieces[-1].offset + pieces[-1].size_bytes, TENSOR_ALIGN)
        chunks.append(Chunk(at, size, kind, tuple(pieces)))
        at = align(at + size)
    return Layout(tuple(chunks), at)


def _cut(spec: Spec) -> Iterator[Piece]:
    source = 0
    for index, shape in _boxes(spec.shape, spec.dtype.itemsize):
        size = math.prod(shape) * spec.dtype.itemsize
        yield Piece(spec, index, shape, 0, source, size)
        source += size


def _boxes(shape: tuple[int, ...], item_bytes: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(start, shape) of the boxes a large tensor is cut into, in the order of its memory."""
    row_bytes = math.prod(shape[1:]) * item_bytes
    if row_bytes > ROW_BYTES:
        for row in range(shape[0]):
            for index, inner in _boxes(shape[1:], item_bytes):
                yield (row, *index), (1, *inner)
        return
    rows = max(1, CHUNK_BYTES // row_bytes)
    rest = (0,) * (len(shape) - 1)
    for row in range(0, shape[0], rows):
        yield (row, *rest), (min(rows, shape[0] - row), *shape[1:])


def _chunk_table(chunk: Chunk) -> dict[str, Any]:
    tensors = [
        {
            "name": piece.spec.name,
            "dtype": str(piece.spec.dtype).removeprefix("torch."),
            "shape": list(piece.shape),
            "global_shape": list(piece.spec.shape),
            "index": list(piece.index),
            "offset": piece.offset,
            "bytes": piece.size_bytes,
        }
        for piece in chunk.pieces
    ]
    return {"offset": chunk.offset, "bytes": chunk.size_bytes, "kind": chunk.kind, "tensors": tensors}


def copy_in(slot: Slot, layout: Layout, tensors: Mapping[str, torch.Tensor], *, zero_gaps: bool) -> None:
    """Copy every tensor to its place in `slot`, which the caller owns and has reserved `layout.end` bytes in."""
    base = ctypes.addressof(ctypes.c_char.from_buffer(slot.view))
    if zero_gaps:
        for offset, length in layout.gaps:
            ctypes.memset(base + offset, 0, length)
    straight = {name: tensor.data_ptr() for name, tensor in tensors.items() if _is_plain_memory(tensor)}
    devices = set()
    for chunk in layout.chunks:
        for piece in chunk.pieces:
            address = straight.get(piece.spec.name)
            if address is not None:
                ctypes.memmove(base + chunk.offset + piece.offset, address + piece.source, piece.size_bytes)
            elif piece.size_bytes:
                tensor = tensors[piece.spec.name].detach()
                _window(slot.view, chunk.offset, piece).copy_(
                    _box(tensor, piece.index, piece.shape), non_blocking=tensor.is_cuda
                )
                devices.add(tensor.device)
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _is_plain_memory(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _window(view: memoryview, chunk_offset: int, piece: Piece) -> torch.Tensor:
    raw = torch.frombuffer(view, dtype=torch.uint8, count=piece.size_bytes, offset=chunk_offset + piece.offset)
    return raw.view(piece.spec.dtype).view(piece.shape)


def _box(tensor: torch.Tensor, index: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    for axis, (start, length) in enumerate(zip(index, shape, strict=True)):
        if length != tensor.shape[axis]:
            tensor = tensor.narrow(axis, start, length)
    return tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """What a slot holds. Tensors named in `views` are the slot's own memory and change when the slot is used again."""

    table: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    views: frozenset[str]


def copy_out(slot: Slot) -> Stored:
    """The table and tensors of a RESTORED slot. Raises UnreadableState when the table does not fit the memory.

    The memory is mapped anew and privately, so that no tensor is ever left without it and none can write into the slot.
    """
    table = slot.read_table()
    memory = memoryview(mmap.mmap(slot.descriptor, slot.get("used_bytes"), access=mmap.ACCESS_COPY))
    tensors: dict[str, torch.Tensor] = {}
    missing: dict[str, int] = {}
    views = set()
    for chunk in table["chunks"]:
        if chunk["offset"] % PAGE or chunk["offset"] + chunk["bytes"] > len(memory):
            raise UnreadableState(f"a chunk at {chunk['offset']} of {chunk['bytes']} bytes lies outside the slot")
        for entry in chunk["tensors"]:
            part = _stored_piece(memory, chunk, entry)
            if entry["shape"] == entry["global_shape"]:
                tensors[entry["name"]] = part
                views.add(entry["name"])
                continue
            whole = tensors.get(entry["name"])
            if whole is None:
                whole = tensors[entry["name"]] = torch.empty(entry["global_shape"], dtype=part.dtype)
                missing[entry["name"]] = whole.numel()
            _box(whole, entry["index"], entry["shape"]).copy_(part)
            missing[entry["name"]] -= part.numel()
    torn = [name for name, count in missing.items() if count]
    if torn:
        raise UnreadableState(f"parts of tensor {torn[0]!r} are missing from the slot")
    return Stored(table, tensors, frozenset(views))


def _stored_piece(memory: memoryview, chunk: Mapping[str, Any], entry: Mapping[str, Any]) -> torch.Tensor:
    dtype, size = dtype_named(entry["dtype"]), entry["bytes"]
    if math.prod(entry["shape"]) * dtype.itemsize != size or entry["offset"] + size > chunk["bytes"]:
        raise UnreadableState(f"tensor {entry['name']!r} of {size} bytes does not fit its chunk of {chunk['bytes']}")
    if not size:
        return torch.empty(entry["shape"], dtype=dtype)
    raw = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=chunk["offset"] + entry["offset"])
    return raw.view(dtype).view(entry["shape"])
