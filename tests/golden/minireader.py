"""A reader of checkpoints written from docs/reference/format.md alone: nothing of holdfast is imported.

The standard library, blake3 and zstandard. That it reads the golden checkpoints shows that the page says enough.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import zstandard
from blake3 import blake3

BLOCK = 4096
ITEM_BYTES = {"uint8": 1, "bool": 1, "bfloat16": 2, "float16": 2, "float32": 4, "int32": 4, "float64": 8, "int64": 8}


class Tensor(NamedTuple):
    """Elements in C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    raw: bytes


def blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def document(path: Path) -> Any:
    """A file of canonical JSON."""
    raw = path.read_bytes()
    value = json.loads(raw)
    assert canonical(value) == raw, f"{path.name} is not canonical"
    return value


def check_format(root: Path) -> None:
    found = document(root / "format.json")
    own = found.pop("blake3")
    assert own == blake3(canonical(found)).hexdigest()
    assert (found["format"], found["version"]) == ("holdfast", 1)


def manifests(root: Path) -> list[dict[str, Any]]:
    """Every manifest that matches its name, in the order of (term, sequence)."""
    found = []
    for path in (root / "manifests").iterdir():
        name = re.fullmatch(r"(\d{6,})-(\d{8,})-([0-9a-f]{64})\.json", path.name)
        assert name and blake3(path.read_bytes()).hexdigest() == name[3]
        manifest = document(path)
        assert (manifest["term"], manifest["sequence"]) == (int(name[1]), int(name[2]))
        assert (manifest["format"], manifest["version"]) == ("holdfast manifest", 1)
        found.append(manifest)
    return sorted(found, key=lambda manifest: (manifest["term"], manifest["sequence"]))


def pack(root: Path, entry: dict[str, Any]) -> dict[int, bytes]:
    """Record offset → chunk, of a pack that is held against its name byte for byte."""
    raw = (root / "packs" / entry["name"][:2] / f"{entry['name']}.hfp").read_bytes()
    assert len(raw) == entry["bytes"]
    magic, footer_bytes, footer_hash = struct.unpack("<8sQ32s", raw[-48:])
    assert (magic, footer_hash.hex()) == (b"HLFPACK1", entry["name"])
    footer_at = len(raw) - blocks(footer_bytes + 48)
    footer, zeros = raw[footer_at : footer_at + footer_bytes], raw[footer_at + footer_bytes : -48]
    assert blake3(footer).hexdigest() == entry["name"] and not any(zeros)
    chunks, at = {}, 0
    for record in json.loads(footer)["records"]:
        assert record["offset"] == at
        id_ = bytes.fromhex(record["id"])
        header = struct.pack("<8sII32sQQ", b"HLFREC01", 1, record["codec"], id_, record["raw"], record["stored"])
        assert raw[at : at + BLOCK] == header.ljust(BLOCK, b"\0")
        end = at + BLOCK + blocks(record["stored"])
        payload, padding = raw[at + BLOCK :][: record["stored"]], raw[at + BLOCK + record["stored"] : end]
        chunk = unpacked(record["codec"], payload, record["raw"])
        assert blake3(chunk).digest() == id_ and not any(padding)
        chunks[at], at = chunk, end
    assert at == footer_at
    return chunks


def unpacked(codec: int, payload: bytes, size: int) -> bytes:
    if codec == 0:
        return payload
    planes = zstandard.ZstdDecompressor().decompress(payload, max_output_size=size)
    assert len(planes) == size
    chunk, at = bytearray(size), 0
    for k in range(codec):
        count = -(-(size - k) // codec)
        chunk[k::codec] = planes[at : at + count]
        at += count
    return bytes(chunk)


def tensors(root: Path, manifest: dict[str, Any], ranks: list[int]) -> dict[str, Tensor]:
    """The tensors of some ranks, put together from their boxes."""
    packs = [pack(root, entry) for entry in manifest["packs"]]
    found: dict[str, tuple[str, list[int], bytearray]] = {}
    for rank in ranks:
        for chunk in manifest["ranks"][rank]["chunks"]:
            raw = packs[chunk["pack"]][chunk["offset"]]
            assert len(raw) == chunk["bytes"] and blake3(raw).hexdigest() == chunk["id"]
            for box in chunk["tensors"]:
                item, whole = ITEM_BYTES[box["dtype"]], box["global_shape"]
                made = found.setdefault(box["name"], (box["dtype"], whole, bytearray(item * math.prod(whole))))
                place(raw[box["offset"] : box["offset"] + box["bytes"]], box, item, made[2])
    return {name: Tensor(dtype, tuple(shape), bytes(raw)) for name, (dtype, shape, raw) in found.items()}


def place(raw: bytes, box: dict[str, Any], item: int, into: bytearray) -> None:
    """Copy a box, element by element, to its place in the whole tensor."""
    assert len(raw) == item * math.prod(box["shape"])
    for number, inner in enumerate(itertools.product(*map(range, box["shape"]))):
        at = 0
        for start, offset, size in zip(box["index"], inner, box["global_shape"], strict=True):
            at = at * size + start + offset
        into[at * item : (at + 1) * item] = raw[number * item : (number + 1) * item]


def value(node: Any, held: dict[str, Tensor]) -> Any:
    """The state tree as Python values; a `Tensor` for each tensor."""
    if isinstance(node, list):
        return [value(member, held) for member in node]
    if not isinstance(node, dict):
        return node
    kind = node["$"]
    if kind in ("dict", "odict"):
        return {value(key, held): value(member, held) for key, member in node["items"]}
    if kind in ("tuple", "size"):
        return tuple(value(member, held) for member in node["v"])
    if kind in ("set", "frozenset"):
        return frozenset(value(member, held) for member in node["v"])
    if kind == "int":
        return int(node["v"], 16)
    if kind == "float":
        return struct.unpack(">d", bytes.fromhex(node["v"]))[0]
    if kind == "complex":
        return complex(*struct.unpack(">dd", bytes.fromhex(node["v"])))
    if kind == "bytes":
        return base64.b64decode(node["v"])
    if kind in ("dtype", "device"):
        return node["v"]
    if kind == "nparray":
        return node["dtype"], tuple(node["shape"]), node["order"], held[node["ref"]].raw
    assert kind == "tensor", f"this reader does not know {kind}"
    return window(held[node["ref"]], node["view"]) if "view" in node else held[node["ref"]]


def window(whole: Tensor, view: dict[str, Any]) -> Tensor:
    item, elements = ITEM_BYTES[whole.dtype], []
    for place_ in itertools.product(*map(range, view["shape"])):
        at = view["offset"] + sum(i * step for i, step in zip(place_, view["stride"], strict=True))
        elements.append(whole.raw[at * item : (at + 1) * item])
    return Tensor(whole.dtype, tuple(view["shape"]), b"".join(elements))
