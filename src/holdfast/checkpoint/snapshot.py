"""Where each tensor of a state lies in a slot, and the copy there and back.

The layout depends on names, kinds, shapes and dtypes only, so it is planned once and kept. Small tensors share chunks
with neighbours of their kind; large ones are cut on whole rows of the global tensor, so that equal weights make equal
chunks whatever stands around them.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
import mmap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from holdfast.checkpoint import boxes
from holdfast.checkpoint.matching import Described
from holdfast.checkpoint.slots import HEADER_BYTES, PAGE, Slot, align
from holdfast.checkpoint.state import UnreadableState, dtype_named
from holdfast.checkpoint.tensors import empty, raw

SMALL_BYTES = 256 << 10  # below: shares a chunk
CHUNK_BYTES = 2 << 20  # what a chunk should hold
ROW_BYTES = 4 << 20  # a row above this is split
TENSOR_ALIGN = 64
MOST_THREADS = 4  # a few fill the memory's bandwidth
SHARE_BYTES = 4 << 20  # what a thread copies before it looks for more; less is not worth a thread


class Spec(NamedTuple):
    """What the layout needs to know of one tensor; `kind` is frozen, trainable, optimizer or other."""

    name: str
    kind: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Piece(NamedTuple):
    """A box of a tensor, contiguous in C order. `offset` counts from the chunk, `source` from the tensor, in bytes."""

    spec: Spec
    start: tuple[int, ...]
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


class Run(NamedTuple):
    """Bytes of a tensor that lie in the slot in one piece. `offset` counts from the slot, `source` from the tensor."""

    name: str
    offset: int
    source: int
    size_bytes: int


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
    def table_text(self) -> str:
        """`table` as JSON: the larger part of a slot table, and the same for each save."""
        return json.dumps(self.table, separators=(",", ":"))

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Every byte of every tensor, in as few runs as there can be."""
        found: list[Run] = []
        for chunk in self.chunks:
            for piece in chunk.pieces:
                offset, name = chunk.offset + piece.offset, piece.spec.name
                before = found[-1] if found else None
                if before and before.name == name and before.offset + before.size_bytes == offset:
                    found[-1] = before._replace(size_bytes=before.size_bytes + piece.size_bytes)
                elif piece.size_bytes:
                    found.append(Run(name, offset, piece.source, piece.size_bytes))
        return tuple(found)

    @cached_property
    def parts(self) -> dict[str, tuple[list[Run], list[tuple[int, Piece]]]]:
        """By tensor: its runs, and its pieces with their offset in the slot; without empty ones."""
        found: dict[str, tuple[list[Run], list[tuple[int, Piece]]]] = {}
        for run in self.runs:
            found.setdefault(run.name, ([], []))[0].append(run)
        for chunk in self.chunks:
            for piece in chunk.pieces:
                if piece.size_bytes:
                    found[piece.spec.name][1].append((chunk.offset + piece.offset, piece))
        return found

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
    source, item = 0, spec.dtype.itemsize
    for box in boxes.cut(boxes.whole(spec.shape), spec.shape, item, most_bytes=CHUNK_BYTES, row_bytes=ROW_BYTES):
        yield Piece(spec, box.index, box.shape, 0, source, box.count * item)
        source += box.count * item


def _chunk_table(chunk: Chunk) -> dict[str, Any]:
    tensors = [
        {
            "name": piece.spec.name,
            "dtype": str(piece.spec.dtype).removeprefix("torch."),
            "shape": list(piece.shape),
            "global_shape": list(piece.spec.shape),
            "index": list(piece.start),
            "offset": piece.offset,
            "bytes": piece.size_bytes,
        }
        for piece in chunk.pieces
    ]
    return {"offset": chunk.offset, "bytes": chunk.size_bytes, "kind": chunk.kind, "tensors": tensors}


class Copy(NamedTuple):
    """One copy that is left to do: from a part of the tensor called `name` into the slot, bit by bit."""

    name: str
    target: torch.Tensor
    source: torch.Tensor


def copy_in(
    slot: Slot,
    layout: Layout,
    tensors: Mapping[str, torch.Tensor],
    *,
    zero_gaps: bool,
    leave: Callable[[torch.Tensor], bool] = lambda _tensor: False,
    threads: int = 1,
) -> list[Copy]:
    """Copy every tensor to its place in `slot`, which the caller owns and has reserved `layout.end` bytes in.

    leave: which tensors are not copied; their copies are returned instead, and hold on to the slot's memory.
    threads: how many may share the work, this one among them; all are done when this returns.
    A contiguous tensor on the CPU costs one memcpy and about 1 µs; gaps are to be zeroed once for each layout.
    """
    base = ctypes.addressof(ctypes.c_char.from_buffer(slot.view))
    if zero_gaps:
        for offset, length in layout.gaps:
            ctypes.memset(base + offset, 0, length)
    addresses = {name: t.data_ptr() for name, t in tensors.items() if _is_plain_memory(t) and not leave(t)}
    large: list[tuple[int, int, int]] = []
    for name, offset, source, size in layout.runs:
        address = addresses.get(name)
        if address is None:
            continue
        if size < SMALL_BYTES:
            _MOVE_SMALL(base + offset, address + source, size)
        else:
            large.append((base + offset, address + source, size))
    _move(large, threads)
    left: list[Copy] = []
    for name, tensor in tensors.items() if len(addresses) < len(tensors) else ():
        if name not in addresses:
            copies = _copies(slot, layout, name, tensor)
            if leave(tensor):
                left += copies
                continue
            for copy in copies:
                copy.target.copy_(copy.source)
    return left


def _move(moves: Sequence[tuple[int, int, int]], threads: int) -> None:
    """Copy (target, source, bytes), shared out among threads that live for this call only: a script may fork."""
    shares = [
        (target + at, source + at, min(SHARE_BYTES, size - at))
        for target, source, size in moves
        for at in range(0, size, SHARE_BYTES)
    ]
    left = iter(shares)

    def work() -> None:
        for share in left:  # each goes to one of us
            ctypes.memmove(*share)

    helpers = [threading.Thread(target=work) for _ in range(min(threads, MOST_THREADS, len(shares)) - 1)]
    try:
        with contextlib.suppress(RuntimeError):  # no more threads are to be had: fewer do the work
            for helper in helpers:
                helper.start()
        work()
    finally:  # whatever interrupts us, nobody writes into the slot after we have returned
        for helper in helpers:
            if helper.ident is not None:
                helper.join()


_MOVE_SMALL = ctypes.PyDLL(None).memmove  # keeps the interpreter lock: giving it away costs more than the copy
_MOVE_SMALL.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_MOVE_SMALL.restype = None


def _is_plain_memory(tensor: torch.Tensor) -> bool:
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _copies(slot: Slot, layout: Layout, name: str, tensor: torch.Tensor) -> list[Copy]:
    """The fewest copies that bring the tensor into the slot: of runs where it is contiguous, else of boxes."""
    source = raw(tensor)
    dtype = source.dtype
    runs, pieces = layout.parts.get(name, ((), ()))
    if not source.is_contiguous():
        windows = [_window(slot, at, piece.size_bytes, dtype).view(piece.shape) for at, piece in pieces]
        sources = [_box(source, piece.start, piece.shape) for _, piece in pieces]
        return [Copy(name, window, box) for window, box in zip(windows, sources, strict=True)]
    flat = source.view(-1)
    cuts = [(run, slice(run.source // dtype.itemsize, (run.source + run.size_bytes) // dtype.itemsize)) for run in runs]
    return [Copy(name, _window(slot, run.offset, run.size_bytes, dtype), flat[cut]) for run, cut in cuts]


def _window(slot: Slot, offset: int, size_bytes: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(slot.view, dtype=torch.uint8, count=size_bytes, offset=offset).view(dtype)


def _box(tensor: torch.Tensor, index: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    for axis, (start, length) in enumerate(zip(index, shape, strict=True)):
        if length != tensor.shape[axis]:
            tensor = tensor.narrow(axis, start, length)
    return tensor


@dataclass(frozen=True, slots=True)
class Stored:
    """What a slot holds."""

    table: dict[str, Any]
    tensors: SlotTensors


class SlotTensors(Mapping[str, torch.Tensor]):
    """The tensors in a slot's memory, made when they are asked for: a model is never in memory once more than needed.

    One whose parts lie side by side is the slot's own memory, and changes when the slot is used again.
    """

    def __init__(self, memory: memoryview, parts: Mapping[str, list[_Part]]) -> None:
        self._memory, self._parts = memory, parts

    def __getitem__(self, name: str) -> torch.Tensor:
        parts = self._parts[name]
        first = parts[0]
        if not self.is_in_place(name):
            return self.put(name, empty(first.whole, first.dtype))
        size = sum(part.size_bytes for part in parts)
        if not size:
            return empty(first.whole, first.dtype)
        flat = torch.frombuffer(self._memory, dtype=torch.uint8, count=size, offset=first.at)
        return flat.view(first.dtype).view(first.whole)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def is_in_place(self, name: str) -> bool:
        """Whether the tensor is the slot's own memory."""
        parts = self._parts[name]
        follows = (one.at + one.size_bytes == other.at for one, other in itertools.pairwise(parts))
        return all(follows) and _are_rows(parts)

    def described(self, name: str) -> Described:
        """Dtype and shape, without touching the memory."""
        first = self._parts[name][0]
        return Described(str(first.dtype).removeprefix("torch."), first.whole)

    def put(self, name: str, target: torch.Tensor) -> torch.Tensor:
        """Copy the tensor's parts straight into `target`, of the same shape and dtype; returns it."""
        into = raw(target)
        for part in self._parts[name]:
            if part.size_bytes:
                flat = torch.frombuffer(self._memory, dtype=torch.uint8, count=part.size_bytes, offset=part.at)
                _box(into, part.start, part.shape).copy_(flat.view(into.dtype).view(part.shape))
        return target


class Owned(Mapping[str, torch.Tensor]):
    """The same tensors in memory of their own, each made once."""

    def __init__(self, tensors: SlotTensors) -> None:
        self._tensors = tensors
        self._made: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._made:
            found = self._tensors[name]
            in_place = self._tensors.is_in_place(name)
            self._made[name] = raw(found).clone().view(found.dtype) if in_place else found
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _Part(NamedTuple):
    """A box of a stored tensor; `at` counts from the start of the slot, `whole` is the tensor's shape."""

    at: int
    size_bytes: int
    dtype: torch.dtype
    start: tuple[int, ...]
    shape: tuple[int, ...]
    whole: tuple[int, ...]


def copy_out(slot: Slot) -> Stored:
    """The table and tensors of a RESTORED slot. Raises UnreadableState when the table does not fit the memory.

    The memory is mapped anew and privately, so that no tensor is ever left without it and none can write into the slot.
    """
    table = slot.read_table()
    memory = memoryview(mmap.mmap(slot.descriptor, slot.get("used_bytes"), access=mmap.ACCESS_COPY))
    parts: dict[str, list[_Part]] = {}
    for chunk in table["chunks"]:
        if chunk["offset"] % PAGE or chunk["offset"] + chunk["bytes"] > len(memory):
            raise UnreadableState(f"a chunk at {chunk['offset']} of {chunk['bytes']} bytes lies outside the slot")
        for entry in chunk["tensors"]:
            parts.setdefault(entry["name"], []).append(_part(chunk, entry))
    for name, found in parts.items():
        if len({(part.dtype, part.whole) for part in found}) > 1:
            raise UnreadableState(f"parts of tensor {name!r} disagree about its shape")
        parted = [boxes.Box(part.start, part.shape) for part in found]
        if not _are_rows(found) and not boxes.fill(parted, boxes.whole(found[0].whole)):
            raise UnreadableState(f"parts of tensor {name!r} are missing from the slot, or overlap")
    return Stored(table, SlotTensors(memory, parts))


def _part(chunk: Mapping[str, Any], entry: Mapping[str, Any]) -> _Part:
    dtype, size, at = dtype_named(entry["dtype"]), entry["bytes"], entry["offset"]
    if math.prod(entry["shape"]) * dtype.itemsize != size or at + size > chunk["bytes"]:
        raise UnreadableState(f"tensor {entry['name']!r} of {size} bytes does not fit its chunk of {chunk['bytes']}")
    start, shape, whole = tuple(entry["index"]), tuple(entry["shape"]), tuple(entry["global_shape"])
    return _Part(chunk["offset"] + at, size, dtype, start, shape, whole)


def _are_rows(parts: Sequence[_Part]) -> bool:
    """Whether the parts are the whole tensor cut along its first axis, in order."""
    if len(parts) == 1:
        return parts[0].shape == parts[0].whole
    row = 0
    for part in parts:
        if part.shape[1:] != part.whole[1:] or part.start[:1] != (row,) or any(part.start[1:]):
            return False
        row += part.shape[0]
    return row == parts[0].whole[0]
