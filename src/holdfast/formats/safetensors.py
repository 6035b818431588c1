"""One safetensors file: weights by name. Written without torch, and without the package of that name.

Layout: eight bytes little-endian length of the header, the header (JSON), the tensors without holes.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.checkpoint.contents import TensorInfo
from holdfast.checkpoint.reading import Checkpoint
from holdfast.errors import UsageError
from holdfast.formats.base import Choice, Unreadable, weights

SAYS = "one file of weights (model.safetensors)"
SUFFIXES: tuple[str, ...] = (".safetensors",)
MAX_HEADER_BYTES = 100_000_000  # as the package of that name
_MAX_DIMENSIONS = 64
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "complex64": "C64",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
_NAMES = {short: name for name, short in DTYPES.items()}


def export(checkpoint: Checkpoint, into: Path, choice: Choice) -> list[str]:
    """The weights, streamed. Of tied tensors one is written; the metadata has the other names, as `save_model` does."""
    found = weights(checkpoint, choice)
    write(checkpoint, found.tensors, into, {**metadata(checkpoint), **found.aliases})
    return [*found.said, *(f"{name} is {kept}, written once" for name, kept in found.aliases.items())]


def metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """Where the weights come from."""
    info = checkpoint.info
    facts = {"run": info.run, "step": info.step, "epoch": info.epoch, "checkpoint": f"{info.term}-{info.sequence}"}
    return {"format": "pt", **{f"holdfast.{name}": str(value) for name, value in facts.items()}}


def write(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], into: Path, facts: Mapping[str, str]) -> None:
    """A file of `tensors`, larger elements first so that all are aligned. Memory stays within a few chunks."""
    ordered = sorted(tensors, key=lambda name: (-tensors[name].item_bytes, name))
    header: dict[str, Any] = {"__metadata__": dict(facts)} if facts else {}
    at = 0
    for name in ordered:
        info = tensors[name]
        if info.dtype not in DTYPES:
            raise UsageError(f"{name} is of {info.dtype}, which safetensors cannot hold", hint="--format pt")
        header[name] = {
            "dtype": DTYPES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [at, at + info.size_bytes],
        }
        at += info.size_bytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw = raw.ljust(-(-len(raw) // 8) * 8)
    with into.open("xb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for part in checkpoint.stream([tensors[name] for name in ordered]):
            file.write(part.into)


def read(source: Path) -> dict[str, Any]:
    """The tensors by name, mapped from the file rather than read. Raises Unreadable, OSError."""
    import torch

    with source.open("rb") as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise Unreadable(f"{source.name} is no safetensors file: a header of {length} bytes in a file of {size}")
        header, begin = _header(file.read(length), size - 8 - length, source.name), 8 + length
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    found: dict[str, Any] = {}
    for name, entry in header.items():
        dtype = getattr(torch, _NAMES[entry["dtype"]], None)
        if dtype is None:
            raise Unreadable(f"{source.name}: this torch has no {_NAMES[entry['dtype']]}, which {name!r} is of")
        start, end = entry["data_offsets"]
        raw = (
            torch.frombuffer(memory, dtype=torch.uint8, count=end - start, offset=begin + start)
            if end > start
            else None
        )
        whole = raw.view(torch.uint8) if raw is not None else torch.empty(0, dtype=torch.uint8)
        found[name] = (whole.clone() if (begin + start) % dtype.itemsize else whole).view(dtype).view(entry["shape"])
    return found


def _header(raw: bytes, data_bytes: int, what: str) -> dict[str, Any]:
    """The entries, each checked against the room there is for data. Raises Unreadable."""
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{what} is no safetensors file: its header is not JSON ({str(error)[:100]})") from error
    if not isinstance(header, dict):
        raise Unreadable(f"{what} is no safetensors file: its header is no object")
    header.pop("__metadata__", None)
    ends = [(0, 0)]
    for name, entry in header.items():
        _check(name, entry, what)
        ends.append(tuple(entry["data_offsets"]))
    ends.sort()
    if any(a[1] != b[0] for a, b in itertools.pairwise(ends)) or ends[-1][1] != data_bytes:
        raise Unreadable(f"{what}: its tensors overlap, leave holes or reach past the end")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name comes twice")
    return made


def _check(name: str, entry: Any, what: str) -> None:
    sound = isinstance(entry, dict) and isinstance(entry.get("dtype"), str) and entry["dtype"] in _NAMES
    sound = sound and _counts(entry.get("shape"), _MAX_DIMENSIONS) and _counts(entry.get("data_offsets"), 2)
    if not sound or len(entry["data_offsets"]) != 2:
        raise Unreadable(f"{what} has no sound entry for {name[:100]!r}")
    from holdfast.checkpoint.dtypes import item_bytes

    start, end = entry["data_offsets"]
    if end - start != math.prod(entry["shape"]) * item_bytes(_NAMES[entry["dtype"]]):
        raise Unreadable(f"{what}: {name[:100]!r} of {entry['dtype']} {entry['shape']} has {end - start} bytes")


def _counts(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n < 1 << 60 for n in value)
