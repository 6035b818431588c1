"""The hand-over of a state from the trainer to the archiver and back: memory that outlives either.

A slot is a memfd made by the shim, or a file in `checkpoint.memory_dir`. Its first page is a header of 64-bit words;
after it come chunks, each starting on a page boundary and padded with zeros to one (so that they can be written with
O_DIRECT straight from here), and last the table: UTF-8 JSON that says what lies where.

Who may touch a slot is told by its `state` word alone, and every transition has one writer:

    FREE ──rank──► WRITING ──rank──► SEALED ──archiver──► HELD or FREE      a save; FREE with the memory tier off
    FREE ──rank──► WRITING ──rank──► HELD                                   a copy for memory alone
    HELD ──rank──► WRITING                                                  while another slot holds a newer copy
    FREE ──archiver──► FILLING ──archiver──► RESTORED ──rank──► FREE        a restore from disk

A HELD copy is the memory tier: what an attempt continues from when the one before it was killed. The rank reads it in
place and leaves it HELD. Only for a rank that asks to restore, and so uses none of its slots, does the archiver take
HELD, WRITING or RESTORED ones that are of no more use.

So any process may die at any moment: a WRITING slot of a dead rank is torn and is taken over by its successor, a
SEALED one belongs to the archiver whoever that is by then, a FILLING one to the archiver's successor. Doorbells
(eventfds) only save the other side from polling; losing a ring loses nothing.

Standard library only: both ends use it.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

PAGE = 4096
HEADER_BYTES = PAGE
MAGIC = 0x31544F4C_53464C48  # b"HLFSLOT1", little endian
SLOTS_PER_RANK = 3
TABLE_VERSION = 1
_STEP_BYTES = 16 << 20  # what a slot grows by at once
_MESSAGE_AT = 2048  # UTF-8 text of a failure, NUL-terminated, to the end of the header page


class State(IntEnum):
    """Who owns the slot; see the module's diagram."""

    FREE = 0
    WRITING = 1
    SEALED = 2
    FILLING = 3
    RESTORED = 4
    HELD = 5  # a sealed copy that the rank keeps for its successor: the memory tier


class Result(IntEnum):
    """What became of the save that the slot last held."""

    NONE = 0
    COMMITTED = 1
    FAILED = 2


_WORDS = {
    "magic": 0,
    "state": 1,
    "sequence": 2,  # of the save it holds; rises by one with each save of a rank
    "step": 3,
    "term": 4,
    "table_offset": 5,
    "table_bytes": 6,
    "used_bytes": 7,  # header, chunks and table
    "result": 8,  # written by the archiver before it frees the slot
    "result_sequence": 9,
    "archived_ns": 10,  # written by the archiver before the result: from seen sealed to durable, 0 when it failed
    "tries": 11,  # written by the rank: attempts that began from this copy and have completed no step
}

Growth = Callable[[int, int], AbstractContextManager[None]]  # descriptor, bytes more: around the growing of a slot


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSet:
    """What the shim hands out for one rank: file descriptors, owned by the receiver."""

    rank: int
    to_archiver: int  # eventfd: the rank rings it after sealing
    to_rank: int  # eventfd: the archiver rings it after giving a slot back
    slots: tuple[int, ...]  # memfds

    def fds(self) -> list[int]:
        """In the order in which they travel over a socket."""
        return [self.to_archiver, self.to_rank, *self.slots]

    @classmethod
    def of(cls, rank: int, fds: list[int]) -> SlotSet:
        """The inverse of `fds`."""
        return cls(rank=rank, to_archiver=fds[0], to_rank=fds[1], slots=tuple(fds[2:]))


def align(offset: int, to: int = PAGE) -> int:
    """The next multiple of `to` at or after `offset`, in bytes."""
    return -(-offset // to) * to


def _unasked(_descriptor: int, _more_bytes: int) -> AbstractContextManager[None]:
    return nullcontext()


class Slot:
    """One mapped slot. `view` is the whole mapping, header included, as writable bytes."""

    def __init__(self, descriptor: int, growth: Growth = _unasked) -> None:
        """Map the memory; an empty one gets its header page. The descriptor stays the caller's.

        growth: asked before the slot grows, and left when it has; raises OSError where there is no room.
        """
        self.descriptor, self._growth = descriptor, growth
        self.before_unmap: Callable[[], object] | None = None  # called once; for who locked the memory
        if os.fstat(descriptor).st_size < HEADER_BYTES:
            os.ftruncate(descriptor, HEADER_BYTES)
        self._map_now()
        if self.get("magic") != MAGIC:
            self.set(magic=MAGIC)  # new memory is zero, so FREE: to say so could undo what the other side has begun

    def _map_now(self) -> None:
        self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)
        self.view = memoryview(self._map)
        self._words = self.view[:HEADER_BYTES].cast("Q")

    def refresh(self) -> None:
        """Map again if the other side has grown the slot since. Nobody may hold a slice of `view` then."""
        if os.fstat(self.descriptor).st_size != len(self.view):
            self.close()
            self._map_now()

    def reserve(self, size_bytes: int) -> None:
        """Grow to at least `size_bytes` and fault the pages in. Raises OSError (ENOSPC, ENOMEM) when there is no room.

        Only the owner calls it, and it never shrinks. Nobody may hold a slice of `view`.
        """
        self.extend(size_bytes)
        self.refresh()

    def extend(self, size_bytes: int, reached: Callable[[int], object] = lambda _size_bytes: None) -> None:
        """As `reserve`, but the new memory is not mapped, and it grows by steps: `reached` is told of each."""
        size, have = align(size_bytes), os.fstat(self.descriptor).st_size
        if size > have:
            with self._growth(self.descriptor, size - have):
                for at in range(have, size, _STEP_BYTES):
                    end = min(at + _STEP_BYTES, size)
                    os.posix_fallocate(self.descriptor, at, end - at)
                    reached(end)

    def get(self, name: str) -> int:
        """The header word called `name`."""
        return self._words[_WORDS[name]]

    def set(self, **words: int) -> None:
        """Store each word in the order given: put `state` last."""
        for name, value in words.items():
            self._words[_WORDS[name]] = value

    @property
    def state(self) -> State:
        """The owner, now."""
        return State(self.get("state"))

    def write_table(self, table: dict[str, Any], offset: int) -> None:
        """Put the table at `offset`, which the owner has reserved room behind, and say so in the header."""
        self.write_table_text(json.dumps(table, separators=(",", ":"), allow_nan=False).encode(), offset)

    def write_table_text(self, raw: bytes, offset: int) -> None:
        """As `write_table`, for who has spelt the table already."""
        self.reserve(offset + len(raw))
        self.view[offset : offset + len(raw)] = raw
        self.set(table_offset=offset, table_bytes=len(raw), used_bytes=offset + len(raw))

    def read_table(self) -> dict[str, Any]:
        """The table of a SEALED, HELD or RESTORED slot. Raises ValueError when it is not JSON of this version."""
        start = self.get("table_offset")
        table = json.loads(bytes(self.view[start : start + self.get("table_bytes")]))
        if not isinstance(table, dict) or table.get("version") != TABLE_VERSION:
            raise ValueError(f"slot table version {table.get('version') if isinstance(table, dict) else table!r}")
        return table

    def write_message(self, text: str) -> None:
        """Why the last save failed, cut to what the header page holds."""
        raw = text.encode()[: HEADER_BYTES - _MESSAGE_AT - 1] + b"\0"
        self.view[_MESSAGE_AT : _MESSAGE_AT + len(raw)] = raw

    def read_message(self) -> str:
        """The text left by `write_message`, or an empty one."""
        return bytes(self.view[_MESSAGE_AT:HEADER_BYTES]).split(b"\0", 1)[0].decode(errors="replace")

    def close(self) -> None:
        """Unmap; the memory lives on while anyone holds its descriptor."""
        if self.before_unmap is not None:
            self.before_unmap()
            self.before_unmap = None
        self._words.release()
        self.view.release()
        self._map.close()


def age(slot: Slot) -> tuple[int, int]:
    """Orders the copies of one rank: greater is newer."""
    return slot.get("term"), slot.get("sequence")


def oldest_spare(slots: Iterable[Slot]) -> Slot | None:
    """The HELD copy that may be given up for a new one: the oldest, unless no other slot holds a newer one."""
    copies = sorted((slot for slot in slots if slot.get("state") in (State.HELD, State.SEALED)), key=age)
    return next((slot for slot in copies[:-1] if slot.get("state") == State.HELD), None)
