"""From live objects to a sealed slot, and what became of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from holdfast.checkpoint.collector import at_rest
from holdfast.checkpoint.slots import TABLE_VERSION, Result, Slot, State, align
from holdfast.checkpoint.snapshot import Layout, Spec, Stored, copy_in, copy_out, plan
from holdfast.checkpoint.state import Encoded, encode
from holdfast.checkpoint.tensors import raw
from holdfast.train.check import Check, SnapshotChanged
from holdfast.train.fence import Fence, Flight
from holdfast.train.link import Link
from holdfast.train.records import tell
from holdfast.train.setting import Setting

_ROOM_BYTES = 1 << 20  # a slot grows by whole steps of this, so that a longer table does not move it
_MOST_LATER = 64  # moments at one step that have numbers of their own
_KEPT = (State.FREE, State.SEALED, State.HELD)  # nobody writes to a slot in these, and what it held is there
_POLL_S = 0.5  # doorbells may get lost with the process that would have rung


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a slot table says besides its content."""

    step: int
    epoch: int
    reason: str
    metrics: Mapping[str, float]
    later: int = 0  # how many moments to save at, equal in all ranks, have been at this step before
    final: bool = False

    @property
    def boundary(self) -> int:
        """A number that rises from one such moment to the next."""
        return self.step * (_MOST_LATER + 1) + min(self.later, _MOST_LATER)


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a save: `error` is empty when it is durable."""

    sequence: int
    step: int
    error: str = ""
    archived_s: float = 0.0  # from seen sealed to durable


@dataclass(slots=True)
class _Copying:
    """A slot in state WRITING whose copies have begun."""

    slot: Slot
    step: int
    sequence: int
    check: Check | None
    flight: Flight | None = None
    into: State = State.SEALED


KindsOf = Callable[[list[str]], Mapping[str, str]]


class Saver:
    """Writes slots and watches them; knows nothing of models."""

    def __init__(self, setting: Setting, link: Link, fence: Fence, *, term: int, next_sequence: int) -> None:
        self._setting, self._link, self.fence = setting, link, fence
        self.term, self._sequence = term, next_sequence
        self._planned: Any = None  # names, kinds, dtypes and shapes of the layout
        self._layout = Layout((), 0)
        self._zeroed: dict[int, Layout] = {}  # descriptor of a slot -> the layout whose gaps are zero there
        self._copying: list[_Copying] = []  # not sealed yet, oldest first
        self._last: Slot | None = None  # that was copied into
        self._in_flight: dict[int, tuple[Slot, int]] = {}  # sequence -> slot, step
        self._ended: list[Done] = []  # not told yet
        self.kept: Callable[[int], object] = lambda _step: None  # called with the step of each slot that became whole

    def seal(
        self,
        slot: Slot,
        values: Mapping[str, Any],
        kinds_of: KindsOf,
        head: Head,
        *,
        into: State = State.SEALED,
        lazily: bool = False,
    ) -> tuple[int, tuple[str, ...]]:
        """Copy `values` into `slot` and give it to the archiver; with `into` HELD it stays ours, a copy in memory.

        lazily: do not wait for a device, but seal at a later `poll`; what optimizers own is copied until one steps.
        Returns the sequence, and sentences on what comes back as another type.
        Raises CannotStore, SnapshotChanged, or OSError when there is no memory; the slot is free again then.
        """
        sequence = self._sequence
        copying, notes = self._fill(slot, values, kinds_of, self._head(head, sequence), lazily=lazily)
        slot.set(sequence=sequence, step=head.step, term=self.term)
        self._last = slot
        copying.into = into
        self._sequence += 1
        self._copying.append(copying)
        if not lazily:
            self._land(wait=True)
        elif copying.flight is None or copying.flight.fenced:
            self._land()
        return sequence, notes

    def settle(self) -> None:
        """Seal what is being copied, however long that takes: code of any kind comes next. Raises SnapshotChanged."""
        if self._copying:
            self._land(wait=True)

    def keep(self, slot: Slot, values: Mapping[str, Any], kinds_of: KindsOf) -> None:
        """Copy `values` into `slot` for ourselves, to be read by `take_back`."""
        copying, _ = self._fill(slot, values, kinds_of, {"version": TABLE_VERSION}, lazily=False)
        if copying.flight is not None:
            copying.flight.wait()

    def _fill(
        self, slot: Slot, values: Mapping[str, Any], kinds_of: KindsOf, head: Mapping[str, Any], *, lazily: bool
    ) -> tuple[_Copying, tuple[str, ...]]:
        self._ended += self._newly_ended()  # what the slot says of its last save goes now
        slot.set(state=State.WRITING, result=Result.NONE, result_sequence=0, tries=0)
        try:
            with at_rest():
                return self._write(slot, values, kinds_of, head, lazily=lazily)
        except BaseException:
            slot.set(state=State.FREE)
            raise

    def _write(
        self, slot: Slot, values: Mapping[str, Any], kinds_of: KindsOf, head: Mapping[str, Any], *, lazily: bool
    ) -> tuple[_Copying, tuple[str, ...]]:
        encoded = encode(values)
        self._plan(encoded, kinds_of)
        table = self._table_text(encoded, head)
        slot.reserve(align(self._layout.end + len(table), _ROOM_BYTES))  # mapped anew, it would lose its lock
        copying, note = self._copy(slot, encoded.tensors, head, lazily=lazily)
        slot.write_table_text(table, self._layout.end)
        return copying, (*encoded.notes, *([note] if note else []))

    def _plan(self, encoded: Encoded, kinds_of: KindsOf) -> None:
        names, tensors = list(encoded.tensors), encoded.tensors.values()
        kinds = kinds_of(names)
        shown = (
            names,
            [kinds.get(name, "other") for name in names],
            [t.dtype for t in tensors],
            [t.shape for t in tensors],
        )
        if shown != self._planned:
            self._planned, self._layout = shown, plan(list(map(Spec, *shown)))

    def _copy(
        self, slot: Slot, tensors: Mapping[str, torch.Tensor], head: Mapping[str, Any], *, lazily: bool
    ) -> tuple[_Copying, str]:
        takes, checked = self.fence.engine.takes, self._setting.check_snapshot
        zero_gaps = self._zeroed.get(slot.descriptor) is not self._layout
        leave = (lambda _: True) if checked else takes
        threads = self._setting.threads
        left = copy_in(slot, self._layout, tensors, zero_gaps=zero_gaps, leave=leave, threads=threads)
        self._zeroed[slot.descriptor] = self._layout
        copying = _Copying(slot, head.get("step", 0), head.get("sequence", 0), Check(left) if checked else None)
        for copy in left:
            if not takes(tensors[copy.name]):
                copy.target.copy_(copy.source)
        left = [copy for copy in left if takes(tensors[copy.name])]
        if not left:
            return copying, ""
        note = self.fence.pin(slot)
        copying.flight = self.fence.copy(left, tensors, lazily=lazily)
        return copying, note

    def _land(self, *, wait: bool = False) -> None:
        """Seal what has been copied. Raises SnapshotChanged in the debug mode."""
        self.fence.hold()
        while self._copying:
            copying = self._copying[0]
            if copying.flight is not None and not (wait or copying.flight.finished()):
                return
            if copying.flight is not None:
                copying.flight.wait()
            self._end(self._copying.pop(0))

    def _end(self, copying: _Copying) -> None:
        slot, why = copying.slot, copying.flight.spoilt if copying.flight is not None else ""
        wrong = copying.check.changed() if copying.check is not None else []
        if wrong:
            slot.set(state=State.FREE)
            raise SnapshotChanged(copying.step, wrong)
        if why:
            slot.set(state=State.FREE)
            self._ended += [Done(copying.sequence, copying.step, why)] if copying.into is State.SEALED else []
            return
        slot.set(state=copying.into)
        self.kept(copying.step)
        if copying.into is State.SEALED:
            self._in_flight[copying.sequence] = (slot, copying.step)
            self._link.ring()

    def close(self) -> None:
        """Seal what is still being copied, and stand in nobody's way any more."""
        try:
            self._land(wait=True)
        except (RuntimeError, SnapshotChanged) as error:  # the device has failed: what was on its way is lost
            tell(f"a copy was lost: {error}")
        self._copying.clear()
        self.fence.forget()

    def take_back(self, slot: Slot) -> Stored:
        """What `keep` left; the slot stays ours until `release`."""
        return copy_out(slot)

    def still_holds(self, sequence: int, values: Mapping[str, Any]) -> bool:
        """Whether `values` are bit for bit what the save `sequence` copied; False where its slot is used anew."""
        if self._last is None or self._last.get("sequence") != sequence or self._last.state not in _KEPT:
            return False
        stored, now = copy_out(self._last), encode(values)
        there, here = dict(stored.table["state"]["items"]), dict(json.loads(json.dumps(now.tree))["items"])
        return all(there.get(name) == node for name, node in here.items()) and all(
            name in stored.tensors and torch.equal(raw(stored.tensors[name]), raw(tensor).cpu())
            for name, tensor in now.tensors.items()
        )

    def release(self, slot: Slot) -> None:
        """The slot may be written again."""
        slot.set(state=State.FREE)

    def _table_text(self, encoded: Encoded, head: Mapping[str, Any]) -> bytes:
        text = json.dumps({**head, "state": encoded.tree}, separators=(",", ":"), allow_nan=False)
        return f'{text[:-1]},"chunks":{self._layout.table_text}}}'.encode()

    def _head(self, head: Head, sequence: int) -> dict[str, Any]:
        return {
            "version": TABLE_VERSION,
            "save_id": f"{self.term}-{head.step}{f'-{head.later}' if head.later else ''}",
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
        """Seal what has been copied by now; saves that ended since the last call, oldest first.

        Costs nothing when none is under way.
        """
        if self._copying:
            self._land()
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
        self._land(wait=True)
        deadline_s = time.monotonic() + timeout_s
        while not until():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            self._link.wait_ring(min(left_s, _POLL_S))
            meanwhile()
        return True
