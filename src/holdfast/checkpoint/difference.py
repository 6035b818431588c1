"""How far apart the tensors of two checkpoints are. Streams: memory stays within a few chunks, whatever their size.

Tensors that consist of the same chunks are equal without being read, since a chunk's name is its hash. NumPy has no
bfloat16 and no float8: the former is the upper half of a float32, the latter are looked up among their 256 values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.checkpoint.contents import TensorInfo
from holdfast.checkpoint.reading import Checkpoint, Wanted, batches

_BATCH_BYTES = 16 << 20
_FLOAT8 = {  # bits of the exponent, its bias; whether there are infinities
    "float8_e4m3fn": (4, 7, False), "float8_e5m2": (5, 15, True), "float8_e4m3fnuz": (4, 8, False),
    "float8_e5m2fnuz": (5, 16, False),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDifference:
    """One name in two checkpoints. Of `first` and `second` (dtype, shape) one is None where it has no such tensor.

    relative_l2: L2 norm of the difference over that of the first. Numbers are None where there is nothing to compare.
    """

    name: str
    first: tuple[str, tuple[int, ...]] | None
    second: tuple[str, tuple[int, ...]] | None
    elements: int = 0
    changed: int | None = None
    relative_l2: float | None = None
    max_abs: float | None = None

    @property
    def what(self) -> str:
        """same, changed, retyped, reshaped, removed or added."""
        if self.first is None or self.second is None:
            return "added" if self.first is None else "removed"
        if self.first[1] != self.second[1]:
            return "reshaped"
        if self.first[0] != self.second[0]:
            return "retyped"
        return "changed" if self.changed else "same"


def compare(first: Checkpoint, second: Checkpoint) -> Iterator[TensorDifference]:
    """Every name of either, those that need no reading first. Raises Damaged, OSError."""
    to_read: list[str] = []
    for name in sorted(first.tensors.keys() | second.tensors.keys()):
        one, other = first.tensors.get(name), second.tensors.get(name)
        if one is not None and other is not None and one.shape == other.shape and not _same_chunks(one, other):
            to_read.append(name)
        else:
            yield _unread(name, one, other)
    yield from _read(first, second, to_read)


def bytes_to_read(first: Checkpoint, second: Checkpoint) -> int:
    """How much of `first` `compare` will read, for a progress bar."""
    shared = first.tensors.keys() & second.tensors.keys()
    pairs = [(first.tensors[name], second.tensors[name]) for name in shared]
    return sum(one.size_bytes for one, other in pairs if one.shape == other.shape and not _same_chunks(one, other))


def _same_chunks(one: TensorInfo, other: TensorInfo) -> bool:
    if not _count(one):
        return True

    def places(tensor: TensorInfo) -> set[Any]:
        return {(stored.box, stored.chunk_id, stored.offset) for stored in tensor.boxes}

    return one.dtype == other.dtype and places(one) == places(other)


def _unread(name: str, one: TensorInfo | None, other: TensorInfo | None) -> TensorDifference:
    looks = [None if tensor is None else (tensor.dtype, tensor.shape) for tensor in (one, other)]
    if one is None or other is None or one.shape != other.shape:
        return TensorDifference(name=name, first=looks[0], second=looks[1], elements=_count(one or other))
    zero: dict[str, Any] = {"changed": 0, "relative_l2": 0.0, "max_abs": 0.0}
    return TensorDifference(name=name, first=looks[0], second=looks[1], elements=_count(one), **zero)


def _count(tensor: TensorInfo | None) -> int:
    return math.prod(tensor.shape) if tensor is not None else 0


class _Sum:
    """What has been seen of one tensor."""

    def __init__(self) -> None:
        self.seen = self.changed = 0
        self.squares = self.of_first = self.largest = 0.0

    def add(self, one: bytes, other: bytes, dtypes: tuple[str, str], items: tuple[int, int]) -> None:
        a, b = values(one, dtypes[0]), values(other, dtypes[1])
        elements = len(one) // items[0]
        self.seen += elements
        apart = a - b
        if dtypes[0] == dtypes[1]:
            differs = _bits(one, items[0]) != _bits(other, items[0])  # equal infinities and NaNs are equal
            if not differs.all():
                apart[np.repeat(~differs, len(a) // elements)] = 0.0
        else:
            differs = (a != b).reshape(elements, -1).any(axis=1)
        self.changed += int(np.count_nonzero(differs))
        self.squares += float(np.dot(apart, apart))
        self.of_first += float(np.dot(a, a))
        self.largest = float(np.fmax(self.largest, np.abs(apart).max(initial=0.0)))
        if np.isnan(apart).any():
            self.squares = self.largest = math.nan

    @property
    def relative_l2(self) -> float:
        """0 for what is equal, infinite for what was zero and is not."""
        if self.squares == 0:
            return 0.0
        return math.sqrt(self.squares / self.of_first) if self.of_first else math.inf


def _bits(raw: bytes, item_bytes: int) -> Any:
    """A whole number for each element; raw bytes for complex128, since there is none so wide. Shape (elements,)."""
    return np.frombuffer(raw, f"u{item_bytes}" if item_bytes <= 8 else f"V{item_bytes}")


def _read(first: Checkpoint, second: Checkpoint, names: Iterable[str]) -> Iterator[TensorDifference]:
    sums: dict[str, _Sum] = {}
    for batch in batches([first.tensors[name] for name in names], _BATCH_BYTES):
        pairs = [(_room(one, box), _room(second.tensors[one.name], box)) for one, box in batch]
        first.read([one for one, _ in pairs])
        second.read([other for _, other in pairs])
        for one, other in pairs:
            tensors = (one.tensor, other.tensor)
            total = sums.setdefault(one.tensor.name, _Sum())
            with np.errstate(all="ignore"):
                total.add(
                    bytes(one.into),
                    bytes(other.into),
                    (tensors[0].dtype, tensors[1].dtype),
                    (tensors[0].item_bytes, tensors[1].item_bytes),
                )
            if total.seen == _count(one.tensor):
                yield _finished(tensors, sums.pop(one.tensor.name))


def _room(tensor: TensorInfo, box: Any) -> Wanted:
    return Wanted(tensor, box, memoryview(bytearray(box.count * tensor.item_bytes)))


def _finished(tensors: tuple[TensorInfo, TensorInfo], total: _Sum) -> TensorDifference:
    one, other = tensors
    return TensorDifference(
        name=one.name,
        first=(one.dtype, one.shape),
        second=(other.dtype, other.shape),
        elements=total.seen,
        changed=total.changed,
        relative_l2=total.relative_l2,
        max_abs=total.largest,
    )


@np.errstate(all="ignore")  # signalling NaNs
def values(raw: bytes, dtype: str) -> Any:
    """The numbers in `raw` as float64; of complex ones real and imaginary parts in turn. Shape (n,)."""
    if dtype == "bfloat16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if dtype in _FLOAT8:
        return _float8_values(dtype)[np.frombuffer(raw, np.uint8)]
    if dtype == "float8_e8m0fnu":
        powers = np.exp2(np.arange(256.0) - 127)
        powers[255] = np.nan
        return powers[np.frombuffer(raw, np.uint8)]
    if dtype.startswith("complex"):
        parts = {"complex32": np.float16, "complex64": np.float32, "complex128": np.float64}[dtype]
        return np.frombuffer(raw, parts).astype(np.float64)
    kind = "uint8" if dtype.startswith(("uint", "float4")) and dtype not in _NUMPY else dtype
    kind = "int8" if kind.startswith("int") and kind not in _NUMPY else kind
    return np.frombuffer(raw, np.dtype(kind)).astype(np.float64)


_NUMPY = frozenset({f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)})


def _float8_values(dtype: str) -> Any:
    """All 256 values of an 8-bit float. Source: OCP 8-bit Floating Point Specification 1.0; ONNX for the fnuz types."""
    exponent_bits, bias, infinities = _FLOAT8[dtype]
    fraction_bits = 7 - exponent_bits
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code >> fraction_bits) & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << fraction_bits) - 1)) / (1 << fraction_bits)
    found = sign * np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * np.exp2(exponent - bias))
    if dtype.endswith("fnuz"):
        found[0x80] = np.nan
    elif infinities:
        top = exponent == (1 << exponent_bits) - 1
        found[top] = np.where(fraction[top] == 0, sign[top] * np.inf, np.nan)
    else:
        found[[0x7F, 0xFF]] = np.nan
    return found
