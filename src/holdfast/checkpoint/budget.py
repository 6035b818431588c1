"""How many slots there is memory for. Pure: measurements in, a number and a sentence out; `room.py` measures.

A copy in memory must never cost a process its life, so slots grow only into what is really spare. What stays free is
for what grows later: workers of the data loader, fragmentation, the archiver's buffers (two packs of 64 MiB), and page
tables, which take a five-hundredth of what is mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.checkpoint.slots import SLOTS_PER_RANK
from holdfast.units import show_size

LEAST_RESERVE_BYTES = 128 << 20
MOST_RESERVE_BYTES = 4 << 30
RESERVE_RATIO = 1 / 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One thing that memory comes out of: the machine, a container, the file system of `memory_dir`."""

    name: str
    total_bytes: int
    available_bytes: int
    reserve: bool = True  # False where running out is an error, and no process is killed for it

    @property
    def spare_bytes(self) -> int:
        """What slots may still take; negative where the reserve is touched already."""
        if not self.reserve:
            return self.available_bytes
        wanted = int(self.total_bytes * RESERVE_RATIO)
        return self.available_bytes - max(LEAST_RESERVE_BYTES, min(wanted, MOST_RESERVE_BYTES))

    def __str__(self) -> str:
        free, kept = show_size(self.available_bytes), show_size(self.available_bytes - max(0, self.spare_bytes))
        aside = f", of which {kept} stay free" if self.reserve else ""
        return f"{self.name} has {free} of {show_size(self.total_bytes)} left{aside}"


def tightest(limits: Sequence[Limit]) -> Limit:
    """The limit that is met first. Raises ValueError when none is given."""
    return min(limits, key=lambda limit: limit.spare_bytes)


def slots_for(state_bytes: int, limits: Sequence[Limit], *, grown: int = 0) -> int:
    """How many slots of `state_bytes` a rank can have, 0 to 3, when `grown` of them have their memory already."""
    more = max(0, tightest(limits).spare_bytes) // max(1, state_bytes)
    return min(SLOTS_PER_RANK, grown + more)


def reduced(count: int, state_bytes: int, limits: Sequence[Limit]) -> str:
    """What it means that only `count` of the slots can be had; empty when nothing is lost."""
    if count >= SLOTS_PER_RANK:
        return ""
    size, why = show_size(state_bytes), tightest(limits)
    if count == 2:
        lost = "while one is written to disk, no copy is made in memory"
    else:
        lost = "none is kept in memory for a restart, which continues from disk"
    return f"there is memory for {count} of {SLOTS_PER_RANK} copies of {size}: {lost}; {why}"


def refusal(more_bytes: int, limits: Sequence[Limit]) -> str:
    """Why a slot cannot grow by `more_bytes`; empty when it can."""
    limit = tightest(limits)
    return "" if more_bytes <= limit.spare_bytes else f"a slot needs {show_size(more_bytes)} more, and {limit}"
