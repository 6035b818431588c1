"""The slots of every rank, as the archiver holds them: what is sealed or held, where there is room for a restore.

A descriptor stays open for as long as its memory may matter, so that a state outlives trainer and shim. All of this
belongs to one thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from holdfast.checkpoint.slots import HEADER_BYTES, Growth, Result, Slot, SlotSet, State, age


class RankSlots:
    """One rank's slots, mapped."""

    def __init__(self, given: SlotSet, growth: Growth, after: State) -> None:
        self.given = given
        self.slots = [Slot(descriptor, growth) for descriptor in given.slots]
        self.memory = memory_of(given)
        self.after = after

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
        for slot in sorted(found, key=age):
            slot.refresh()
            yield slot

    def held(self) -> Iterator[tuple[int, Slot]]:
        """Copies in memory with their index, newest first, mapped in full."""
        found = [(index, slot) for index, slot in enumerate(self.slots) if slot.get("state") == State.HELD]
        for index, slot in sorted(found, key=lambda one: age(one[1]), reverse=True):
            slot.refresh()
            yield index, slot

    def room(self) -> int:
        """Index of a slot for this rank's restore. The rank asks, so it uses none: unfinished business is torn.

        One that has its memory already comes first, HELD copies too, oldest first: none of them is continued from.
        """
        for slot in self.slots:
            if slot.get("state") in (State.FILLING, State.RESTORED, State.WRITING):
                slot.set(state=State.FREE)
        ours = [(index, slot) for index, slot in enumerate(self.slots) if slot.get("state") in (State.FREE, State.HELD)]
        if not ours:
            raise RuntimeError(f"rank {self.rank} has no slot left for a restore")
        index, slot = min(ours, key=lambda one: (len(one[1].view) <= HEADER_BYTES, one[1].get("state"), age(one[1])))
        slot.set(state=State.FREE)
        return index

    def renew(self, given: SlotSet) -> None:
        """The same memory came again, with the doorbells of another shim: those are the ones the rank has."""
        for descriptor in (*given.slots, self.given.to_archiver, self.given.to_rank):
            os.close(descriptor)
        self.given = replace(given, slots=self.given.slots)

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
        """Say what became of it, how long a commit took, and give the slot back: as a copy in memory if it can be."""
        self.slot.write_message(message)
        self.slot.set(archived_ns=int(archived_s * 1e9))
        self.slot.set(result=result, result_sequence=self.slot.get("sequence"))
        self.slot.set(state=self.owner.after if self.table else State.FREE)
        self.owner.ring()


class SlotSets:
    """All ranks. A rank may have an older set besides its newest: one that a shim before handed out."""

    def __init__(self, growth: Growth, *, after: State) -> None:
        """`after`: what a sealed slot becomes when its save has ended, HELD with the memory tier, FREE without."""
        self._held: dict[int, list[RankSlots]] = {}
        self._growth, self._after = growth, after

    def add(self, given: SlotSet) -> None:
        """Hold these from now on."""
        held = self._held.setdefault(given.rank, [])
        known = next((one for one in held if one.memory == memory_of(given)), None)
        if known is not None:
            known.renew(given)
            held.append(held.pop(held.index(known)))  # the last one given is the one in use
        else:
            held.append(RankSlots(given, self._growth, self._after))

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
