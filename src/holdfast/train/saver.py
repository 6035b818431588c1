"""From live objects to a sealed slot, and what became of it."""

from __future__ import annotations

import contextlib
import gc
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.checkpoint.slots import TABLE_VERSION, Result, Slot, State
from holdfast.checkpoint.snapshot import Layout, Spec, Stored, copy_in, copy_out, plan
from holdfast.checkpoint.state import Encoded, encode
from holdfast.train.link import Link
from holdfast.train.setting import Setting

_POLL_S = 0.5  # doorbells may get lost with the process that would have rung


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a slot table says besides its content."""

    step: int
    epoch: int
    reason: str
    metrics: Mapping[str, float]
    turn: bool = False  # at the end of an epoch, where the step may have been saved already
    final: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a save: `error` is empty when it is durable."""

    sequence: int
    step: int
    error: str = ""
    archived_s: float = 0.0  # from seen sealed to durable


KindsOf = Callable[[list[str]], Mapping[str, str]]


class Saver:
    """Writes slots and watches them; knows nothing of models."""

    def __init__(self, setting: Setting, link: Link, *, term: int, next_sequence: int) -> None:
        self._setting, self._link = setting, link
        self.term, self._sequence = term, next_sequence
        self._specs: list[Spec] = []
        self._layout = Layout((), 0)
        self._zeroed: dict[int, Layout] = {}  # descriptor of a slot -> the layout whose gaps are zero there
        self._in_flight: dict[int, tuple[Slot, int]] = {}  # sequence -> slot, step
        self._ended: list[Done] = []  # not told yet

    def seal(
        self, slot: Slot, values: Mapping[str, Any], kinds_of: KindsOf, head: Head, *, into: State = State.SEALED
    ) -> tuple[int, tuple[str, ...]]:
        """Copy `values` into `slot` and give it to the archiver; with `into` HELD it stays ours, a copy in memory.

        Returns the sequence, and sentences on what comes back as another type.
        Raises CannotStore, or OSError when there is no memory; the slot is free again then.
        """
        sequence = self._sequence
        self._begin(slot)
        try:
            encoded = self._fill(slot, values, kinds_of)
            slot.write_table_text(self._table_text(encoded, self._head(head, sequence)), self._layout.end)
        except BaseException:
            slot.set(state=State.FREE)
            raise
        slot.set(sequence=sequence, step=head.step, term=self.term, state=into)
        self._sequence += 1
        if into is State.SEALED:
            self._in_flight[sequence] = (slot, head.step)
            self._link.ring()
        return sequence, encoded.notes

    def keep(self, slot: Slot, values: Mapping[str, Any], kinds_of: KindsOf) -> None:
        """Copy `values` into `slot` for ourselves, to be read by `take_back`."""
        self._begin(slot)
        try:
            encoded = self._fill(slot, values, kinds_of)
            slot.write_table_text(self._table_text(encoded, {"version": TABLE_VERSION}), self._layout.end)
        except BaseException:
            slot.set(state=State.FREE)
            raise

    def take_back(self, slot: Slot) -> Stored:
        """What `keep` left; the slot stays ours until `release`."""
        return copy_out(slot)

    def release(self, slot: Slot) -> None:
        """The slot may be written again."""
        slot.set(state=State.FREE)

    def _begin(self, slot: Slot) -> None:
        self._ended += self._newly_ended()  # what the slot says of its last save goes now
        slot.set(state=State.WRITING, result=Result.NONE, result_sequence=0, tries=0)

    def _fill(self, slot: Slot, values: Mapping[str, Any], kinds_of: KindsOf) -> Encoded:
        with _collector_at_rest():
            encoded = encode(values)
        kinds = kinds_of(list(encoded.tensors))
        tensors = encoded.tensors
        specs = [Spec(name, kinds.get(name, "other"), tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
        if specs != self._specs or not self._layout.end:
            self._specs, self._layout = specs, plan(specs)
        slot.reserve(self._layout.end)
        copy_in(slot, self._layout, encoded.tensors, zero_gaps=self._zeroed.get(slot.descriptor) is not self._layout)
        self._zeroed[slot.descriptor] = self._layout
        return encoded

    def _table_text(self, encoded: Encoded, head: Mapping[str, Any]) -> bytes:
        text = json.dumps({**head, "state": encoded.tree}, separators=(",", ":"), allow_nan=False)
        return f'{text[:-1]},"chunks":{self._layout.table_text}}}'.encode()

    def _head(self, head: Head, sequence: int) -> dict[str, Any]:
        return {
            "version": TABLE_VERSION,
            "save_id": f"{self.term}-{head.step}{'-turn' if head.turn else ''}",
            "rank": self._setting.rank,
            "world": self._setting.world,
            "run": self._setting.run.id,
            "term": self.term,
            "sequence": sequence,
            "step": head.step,
            "epoch": head.epoch,
            "time_s": time.time(),
            "reason": head.reason,
            "metrics": dict(head.metrics),
            "final": head.final,
        }

    def poll(self) -> list[Done]:
        """Saves that ended since the last call, oldest first. Costs nothing when none is under way."""
        ended, self._ended = self._ended + self._newly_ended(), []
        return ended

    def _newly_ended(self) -> list[Done]:
        ended = []
        for sequence, (slot, step) in sorted(self._in_flight.items()) if self._in_flight else ():
            if slot.get("result_sequence") == sequence and slot.get("result") != Result.NONE:
                failed = slot.get("result") == Result.FAILED
                error = (slot.read_message() or "no reason given") if failed else ""
                ended.append(Done(sequence, step, error, slot.get("archived_ns") / 1e9))
                del self._in_flight[sequence]
        return ended

    def wait(self, until: Callable[[], bool], *, timeout_s: float, meanwhile: Callable[[], object]) -> bool:
        """Call `meanwhile` at each ring of the archiver until `until` holds; False after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while not until():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            self._link.wait_ring(min(left_s, _POLL_S))
            meanwhile()
        return True


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """The tree of a large state is many small objects that all stay: walking them again and again doubles its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
