"""What a rank says about the bytes in its slot, checked: a table is input from another process, or from a file.

Format: docs/concepts/architecture.md, "Slot table". In a manifest the same chunks carry `id` and `pack` as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.checkpoint.canonical import Damaged, is_count
from holdfast.checkpoint.pack import MAX_CHUNK_BYTES
from holdfast.checkpoint.slots import HEADER_BYTES, PAGE, TABLE_VERSION, align

MAX_WORLD = 1 << 16
KINDS = ("frozen", "trainable", "optimizer", "other")
_TENSOR_ALIGNMENT = 64
_MAX_DIMENSIONS = 64


def _is_text(most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and len(value) <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MAX_DIMENSIONS and all(is_count(size) for size in value)


_HEAD: Mapping[str, Callable[[Any], bool]] = {
    "version": lambda value: value == TABLE_VERSION,
    "save_id": _is_text(200),
    "rank": lambda value: is_count(value, most=MAX_WORLD - 1),
    "world": lambda value: is_count(value, least=1, most=MAX_WORLD),
    "run": _is_text(1000),
    "term": is_count,
    "sequence": is_count,
    "step": is_count,
    "epoch": is_count,
    "time_s": _is_number,
    "reason": _is_text(10_000),
    "metrics": lambda value: isinstance(value, dict),
    "final": lambda value: isinstance(value, bool),
    "state": lambda value: isinstance(value, dict),
}
_TENSOR: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_text(10_000),
    "dtype": _is_text(100),
    "shape": _is_shape,
    "global_shape": _is_shape,
    "index": _is_shape,
    "offset": is_count,
    "bytes": is_count,
}


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Those metrics that can be compared."""
    return {name: float(value) for name, value in metrics.items() if _is_number(value)}


def check_head(table: dict[str, Any], what: str) -> None:
    """Everything in a table but its chunks. Raises Damaged, naming `what` and the field."""
    _check_fields(table, _HEAD, what)
    if table["rank"] >= table["world"]:
        raise Damaged(f"{what}: rank {table['rank']} of {table['world']}")


def check_chunk(chunk: Any, what: str) -> None:
    """One entry of `chunks`, wherever its bytes lie. Raises Damaged."""
    if not isinstance(chunk, dict) or not is_count(chunk.get("bytes"), most=MAX_CHUNK_BYTES):
        raise Damaged(f"{what}: a chunk has no size, or one past {MAX_CHUNK_BYTES} bytes")
    if chunk.get("kind") not in KINDS or not isinstance(chunk.get("tensors"), list):
        raise Damaged(f"{what}: a chunk has no kind or no tensors")
    for tensor in chunk["tensors"]:
        _check_tensor(tensor, chunk["bytes"], what)


def _check_tensor(tensor: Any, chunk_bytes: int, what: str) -> None:
    if not isinstance(tensor, dict):
        raise Damaged(f"{what}: a tensor is no object")
    _check_fields(tensor, _TENSOR, what)
    box = (tensor["index"], tensor["shape"], tensor["global_shape"])
    inside = len({len(side) for side in box}) == 1 and all(i + n <= whole for i, n, whole in zip(*box, strict=True))
    if not inside or tensor["offset"] % _TENSOR_ALIGNMENT or tensor["offset"] + tensor["bytes"] > chunk_bytes:
        raise Damaged(f"{what}: tensor {tensor['name'][:100]!r} does not lie inside its chunk and its global shape")


def check_slot_table(table: dict[str, Any], slot_bytes: int, what: str) -> None:
    """A whole table as found in a slot of `slot_bytes`. Raises Damaged."""
    check_head(table, what)
    if not isinstance(table.get("chunks"), list):
        raise Damaged(f"{what}: no list of chunks")
    for chunk in table["chunks"]:
        check_chunk(chunk, what)
        offset = chunk.get("offset")
        aligned = is_count(offset, least=HEADER_BYTES) and offset % PAGE == 0
        if not aligned or offset + align(chunk["bytes"]) > slot_bytes:
            raise Damaged(f"{what}: a chunk at {offset!r} does not lie inside the slot of {slot_bytes} bytes")


def _check_fields(found: dict[str, Any], rules: Mapping[str, Callable[[Any], bool]], what: str) -> None:
    for name, rule in rules.items():
        if name not in found or not rule(found[name]):
            raise Damaged(f"{what}: {name} is {str(found.get(name))[:100]!r}")
