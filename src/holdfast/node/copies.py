"""Copies in memory that every rank holds: what a restart continues from without reading a disk.

Reads slots only. Runs on the thread of `Archive`. What a rank wrote is input: a copy whose table does not fit its slot
is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.lease import Memory
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.slots import Slot
from holdfast.checkpoint.survey import Survey
from holdfast.checkpoint.table import check_slot_table
from holdfast.node.slotsets import RankSlots, SlotSets

MOST_TRIES = 2  # attempts that begin from one copy and complete no step, before it is no longer trusted


@dataclass(frozen=True, slots=True)
class Copy:
    """One rank's part. `index` is that of its slot; `tries`: attempts that began from it and completed no step."""

    index: int
    table: dict[str, Any]
    tries: int

    @property
    def name(self) -> Memory:
        """As a lease names it."""
        return Memory(term=self.table["term"], sequence=self.table["sequence"], save_id=self.table["save_id"])

    def __str__(self) -> str:
        return f"the copy in memory of step {self.table['step']} (term {self.table['term']})"


def of_rank(owner: RankSlots) -> Iterator[Copy]:
    """Its sound copies, newest first."""
    for index, slot in owner.held():
        table = _table(owner, slot)
        if table is not None:
            yield Copy(index, table, slot.get("tries"))


def _table(owner: RankSlots, slot: Slot) -> dict[str, Any] | None:
    try:
        table = slot.read_table()
        check_slot_table(table, len(slot.view), f"a slot of rank {owner.rank}")
    except (ValueError, RecursionError, Damaged):
        return None
    names = ("term", "sequence", "step")
    sound = table["rank"] == owner.rank and all(table[name] == slot.get(name) for name in names)
    return table if sound else None


def newest(slots: SlotSets, world: int, found: Survey) -> tuple[Copy, ...] | None:
    """The parts, ranks in order, of the newest copy that all of `world` ranks hold and that may be continued from.

    It is of the newest term, or the one that this term began from; and nothing live on disk is newer.
    """
    owners = [slots.newest(rank) for rank in range(world)]
    ranks = [{copy.name.save_id: copy for copy in reversed(list(of_rank(owner)))} for owner in owners if owner]
    if len(ranks) < world:
        return None
    durable = max(found.line(), default=Position(0, 0))
    for first in sorted(ranks[0].values(), key=lambda copy: copy.name.position, reverse=True):
        parts = tuple(rank[first.name.save_id] for rank in ranks if first.name.save_id in rank)
        if _is_current(first, found) and first.name.position >= durable and _fit(parts, world):
            return parts
    return None


def _fit(parts: tuple[Copy, ...], world: int) -> bool:
    steps = {part.table["step"] for part in parts}
    return len(parts) == world and len(steps) == 1 and all(part.table["world"] == world for part in parts)


def _is_current(copy: Copy, found: Survey) -> bool:
    began = found.lease.memory if found.lease is not None else None
    return copy.table["term"] == found.newest_term or copy.name == began


def named(owner: RankSlots, memory: Memory) -> Copy | None:
    """The rank's part of the copy that a lease names. Its own number may be another than that of rank 0."""
    return next((copy for copy in of_rank(owner) if copy.name.save_id == memory.save_id), None)
