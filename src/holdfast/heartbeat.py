"""One mapped page a rank: what training is doing now, and what it is asked to do next.

The trainer writes the upper half, the supervisor the lower; every field is one aligned 64-bit word with a single
writer, so no reader can block or tear a writer, and a killed process leaves its last word behind. Times are
CLOCK_MONOTONIC nanoseconds, comparable between processes of one boot.

Standard library only: the trainer maps it in the user's own environment.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

PAGE_BYTES = 4096
DECISIONS = 8  # how many of rank 0's newest decisions can be read: ranks are never so far apart
AHEAD_S = 0.05  # how far ahead of every rank a common step is set, so that no rank passes it while it is told
MAGIC = 0x31454741_50464C48  # b"HLFPAGE1", little endian


class Phase(IntEnum):
    """Where the trainer is; `RUNNING` is the only phase in which a missing heartbeat means a hang."""

    STARTING = 0  # constructed, nothing restored yet
    RESTORING = 1
    RUNNING = 2  # inside a step, or between two
    SAVING = 3  # copying state into a slot
    WAITING = 4  # for a checkpoint to become durable
    EPOCH_CODE = 5  # user code between two loops over a loader: validation, plotting
    CLOSED = 6  # run.close() returned, or the interpreter is leaving


class Outcome(IntEnum):
    """How the library saw the script end; 0 while it runs or when it was killed."""

    NONE = 0
    FINISHED = 1  # epochs exhausted or close(): the final checkpoint is durable
    STOPPED = 2  # left with 75 after an agreed stop
    RAISED = 3  # an exception is leaving the interpreter


class Handlers(IntFlag):
    """Signals for which the trainer has installed a handler; nobody sends one that is not announced here."""

    NONE = 0
    STACKS = 1  # SIGUSR2: faulthandler writes all threads to stderr
    TERMINATE = 2  # SIGTERM: save at the next step boundary and leave with 75
    SAVE = 4  # SIGUSR1: save at the next step boundary and go on


# word index within the page: name -> offset / 8
_WORDS = {
    "magic": 0,
    # written by the trainer
    "pid": 1,
    "start_ticks": 2,  # /proc/<pid>/stat field 22, so that a reused pid is told apart
    "rank": 3,
    "world": 4,
    "attempt": 5,
    "step": 6,  # completed steps
    "steps_total": 7,  # 0 while unknown
    "epoch": 8,
    "phase": 9,
    "beat_ns": 10,  # last sign of life
    "handlers": 11,
    "outcome": 12,
    "save_handled": 13,  # number of the newest save request that was answered by a save
    "stop_wanted": 14,  # 1 once this rank received SIGTERM: the supervisor then agrees on a step
    "committed_step": 15,  # newest step this rank knows to be durable
    "committed_sequence": 16,
    "first_step": 17,  # step at which this attempt began
    "blocked_ns": 18,  # time this attempt's steps spent inside saves
    "save_wanted": 19,  # above `save_number` while this rank wants all ranks to save
    "memory_step": 24,  # of the newest copy in memory that this rank keeps for a restart
    "memory_at_s": 25,  # when it was made, in unix seconds: it is told to people
    "memory_steps": 26,  # steps between two of them, where this rank has to choose; all take the largest
    "memory_blocked_ns": 27,  # time this attempt's steps spent making them
    "news": 28,  # 2 × (boundary + 1), plus 1 if this rank has something new to save at that end of training
    # rank 0's newest decisions whether all ranks save at a boundary, told by `note_decision`
    **{f"decision_{number}": 32 + number for number in range(DECISIONS)},
    # written by the supervisor; by rank 0 of several ranks that have none
    "save_number": 256,  # rises by one with each request
    "save_at_step": 257,  # save when `step` reaches it
    "stop_at_step": 258,  # 0: none; save, wait until durable, leave with 75 when `step` reaches it
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A consistent-enough copy of one page: each word is whole, two words may be one step apart."""

    pid: int
    start_ticks: int
    rank: int
    world: int
    attempt: int
    step: int
    steps_total: int
    epoch: int
    phase: Phase
    beat_ns: int
    handlers: Handlers
    outcome: Outcome
    save_handled: int
    stop_wanted: int
    committed_step: int
    committed_sequence: int
    first_step: int
    blocked_ns: int
    save_wanted: int
    memory_step: int = 0
    memory_at_s: int = 0
    memory_steps: int = 0
    memory_blocked_ns: int = 0


class Page:
    """A mapped heartbeat page; fields are read and written as whole words with `get` and `set`."""

    def __init__(self, path: Path) -> None:
        """Map `path`, creating a zero page where there is none. Raises OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < PAGE_BYTES:
                os.ftruncate(descriptor, PAGE_BYTES)
            self._map = mmap.mmap(descriptor, PAGE_BYTES)
        finally:
            os.close(descriptor)
        self._words = memoryview(self._map).cast("Q")
        self.path = path

    def get(self, name: str) -> int:
        """The word called `name`."""
        return self._words[_WORDS[name]]

    def set(self, **words: int) -> None:
        """Store each word; the last one given is stored last."""
        for name, value in words.items():
            self._words[_WORDS[name]] = value

    def note_decision(self, boundary: int, *, go: bool) -> None:
        """Rank 0 says whether all ranks save at `boundary`, a number that rises from one to the next."""
        self.set(**{f"decision_{boundary % DECISIONS}": (boundary + 1) << 1 | go})

    def decision(self, boundary: int) -> bool | None:
        """What `note_decision` said of `boundary`; False when later ones are told already, None while unknown."""
        told = self.get(f"decision_{boundary % DECISIONS}")
        if told >> 1 == boundary + 1:
            return bool(told & 1)
        newest = max(self.get(f"decision_{number}") for number in range(DECISIONS)) >> 1
        return False if newest > boundary + 1 else None

    def begin(self, *, pid: int, start_ticks: int, rank: int, world: int, attempt: int) -> None:
        """Clear the trainer's half for a new attempt, identity last but for the magic word."""
        for name, index in _WORDS.items():
            if index < _WORDS["save_number"]:
                self._words[_WORDS[name]] = 0
        self.set(rank=rank, world=world, attempt=attempt, start_ticks=start_ticks, pid=pid, magic=MAGIC)

    def read(self) -> Beat | None:
        """The trainer's half, or None when no trainer has written it."""
        if self.get("magic") != MAGIC:
            return None
        raw: dict[str, Any] = {name: self._words[_WORDS[name]] for name in Beat.__slots__}
        raw["phase"], raw["outcome"] = Phase(raw["phase"]), Outcome(raw["outcome"])
        raw["handlers"] = Handlers(raw["handlers"])
        return Beat(**raw)

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._map.close()


def page_path(runtime: Path, rank: int) -> Path:
    """Where rank `rank` keeps its page, below the run's runtime directory."""
    return runtime / "pages" / f"rank-{rank:05d}"


def beat_at(path: Path) -> Beat | None:
    """What the page at `path` says, None before there is one, or anything in it."""
    if not path.exists():
        return None
    page = Page(path)
    try:
        return page.read()
    finally:
        page.close()


def meeting_step(beats: Sequence[Beat], step_s: float) -> int:
    """The first step that no rank can have completed before all were told; `step_s` is how long a step takes."""
    newest = max((max(beat.step, beat.first_step) for beat in beats), default=0)
    ahead = 0 if len(beats) < 2 else math.ceil(AHEAD_S / step_s) if step_s > 0 else 1
    return newest + 1 + min(ahead, 1000)
