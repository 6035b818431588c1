"""Small states of a training, as a rank would leave them in a slot."""

from __future__ import annotations

import mmap
import os
import random
from typing import Any

from holdfast.checkpoint.commit import Part
from holdfast.checkpoint.slots import HEADER_BYTES, Slot, State, align

SIZES = (5000, 4096, 100, 9000)
KINDS = ("trainable", "optimizer", "frozen", "other")


def table_of(*, sizes: tuple[int, ...] = SIZES, **fields: Any) -> tuple[dict[str, Any], int]:
    """A slot table with a chunk of each size, one tensor in each, and where the table itself may lie."""
    chunks, offset = [], HEADER_BYTES
    for index, size in enumerate(sizes):
        tensor = {"name": f"t{index}", "dtype": "uint8", "offset": 0, "bytes": size, "index": [0]}
        chunk = {"offset": offset, "bytes": size, "kind": KINDS[index % 4]}
        chunks.append({**chunk, "tensors": [{**tensor, "shape": [size], "global_shape": [size]}]})
        offset += align(size)
    term, step = fields.get("term", 1), fields.get("step", 10)
    head = {
        "version": 1, "rank": 0, "world": 1, "run": "digits", "term": term, "sequence": 1, "step": step, "epoch": 2,
        "time_s": 1764000000.5, "reason": "test", "metrics": {}, "final": False, "state": {"n": 1},
        "save_id": f"{term}-{step}",
    }  # fmt: skip
    return {**head, **fields, "chunks": chunks}, offset


def fill_random(view: memoryview, table: dict[str, Any], seed: int) -> None:
    """Random bytes in each chunk, zeros behind them."""
    chance = random.Random(seed)
    for chunk in table["chunks"]:
        start, size = chunk["offset"], chunk["bytes"]
        view[start : start + align(size)] = chance.randbytes(size).ljust(align(size), b"\0")


def part_of(*, seed: int = 0, **fields: Any) -> Part:
    """A part in memory of its own; other seeds have other bytes."""
    table, size = table_of(**fields)
    view = memoryview(mmap.mmap(-1, size))
    fill_random(view, table, seed)
    return Part(table, view)


def new_slot() -> Slot:
    """A slot in a memfd of this process."""
    return Slot(os.memfd_create("test"))


def seal(slot: Slot, *, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """Do what a rank does to save; returns the table."""
    table, end = table_of(**fields)
    slot.set(state=State.WRITING)
    slot.reserve(end)
    fill_random(slot.view, table, seed)
    slot.write_table(table, end)
    slot.set(sequence=table["sequence"], step=table["step"], term=table["term"], state=State.SEALED)
    return table


def contents(view: memoryview, table: dict[str, Any]) -> list[bytes]:
    """The bytes of each chunk."""
    return [bytes(view[c["offset"] : c["offset"] + c["bytes"]]) for c in table["chunks"]]
