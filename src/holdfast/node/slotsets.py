"""The slots of every rank, as the archiver holds them: what is sealed, where there is room for a restore.

A descriptor stays open for as long as its memory may matter, so that a state outlives trainer and shim. All of this
belongs to one thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from holdfast.checkpoint.slots import Result, Slot, SlotSet, State


class RankSlots:
    """One rank's slots, mapped."""

    def __init__(self, given: SlotSet) -> None:
        self.given = given
        self.slots = [Slot(descriptor) for descriptor in given.slots]
        self.memory = memory_of(given)

    @property
    def rank(self) -> int:
        """Whose they are."""
        return self.given.rank

    def ring(self) -> None:
        """Tell the rank that a slot has changed hands."""
        os.eventfd_write(self.given.to_rank, 1)

    def sealed(self) -> Iterator[Slot]:
        """Slots that wait to be saved, oldest first, mapped in full."""
        found = [slot for slot in self.slots if slot.get("state") == State.SEALED]
        for slot in sorted(found, key=lambda slot: (slot.get("term"), slot.get("sequence"))):
            slot.refresh()
            yield slot

    def room(self) -> int:
        """Index of a slot for this rank's restore. The rank asks, so it uses none: unfinished business is torn."""
        for slot in self.slots:
            if slot.get("state") in (State.FILLING, State.RESTORED):
                slot.set(state=State.FREE)
        for wanted in (State.FREE, State.WRITING):
            for index, slot in enumerate(self.slots):
                if slot.get("state") == wanted:
                    slot.set(state=State.FREE)
                    return index
        raise RuntimeError(f"rank {self.rank} has no slot left for a restore")

    def close(self) -> None:
        """Unmap, and let go of the descriptors."""
        for slot in self.slots:
            slot.close()
        close_fds(self.given)


@dataclass(frozen=True, slots=True)
class Sealed:
    """One rank's share of a save that waits."""

    owner: RankSlots
    slot: Slot
    table: dict[str, Any]

    def finish(self, result: Result, message: str = "", *, archived_s: float = 0.0) -> None:
        """Say what became of it, how long a commit took, and give the slot back to the rank."""
        self.slot.write_message(message)
        self.slot.set(archived_ns=int(archived_s * 1e9))
        self.slot.set(result=result, result_sequence=self.slot.get("sequence"), state=State.FREE)
        self.owner.ring()


class SlotSets:
    """All ranks. A rank may have an older set besides its newest: one that a shim before handed out."""

    def __init__(self) -> None:
        self._held: dict[int, list[RankSlots]] = {}

    def add(self, given: SlotSet) -> bool:
        """Hold these from now on; False, and they are closed, when it is the memory we hold already."""
        held = self._held.setdefault(given.rank, [])
        if any(one.memory == memory_of(given) for one in held):
            close_fds(given)
            return False
        held.append(RankSlots(given))
        return True

    def newest(self, rank: int) -> RankSlots | None:
        """The set that the rank uses."""
        held = self._held.get(rank)
        return held[-1] if held else None

    def every(self) -> list[RankSlots]:
        """All sets of all ranks."""
        return [one for held in self._held.values() for one in held]

    def drop_unused(self) -> None:
        """Close sets that a newer one replaced, once nothing in them waits."""
        for held in self._held.values():
            for one in held[:-1]:
                if not any(True for _ in one.sealed()):
                    held.remove(one)
                    one.close()


def memory_of(given: SlotSet) -> tuple[int, ...]:
    """What tells one memfd from another, whatever the descriptor."""
    return tuple(os.fstat(descriptor).st_ino for descriptor in given.slots)


def close_fds(given: SlotSet) -> None:
    """Let go of descriptors."""
    for descriptor in given.fds():
        os.close(descriptor)
