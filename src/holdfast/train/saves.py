"""Saving from the training loop's side: when, with which words, and waiting where that is promised."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.checkpoint.slots import Slot
from holdfast.checkpoint.triggers import Point, counted, improves, requested, timed
from holdfast.errors import StoreRefused
from holdfast.heartbeat import Page, Phase
from holdfast.process import age_s
from holdfast.train.accord import FOLLOW_S, Accord
from holdfast.train.link import Link
from holdfast.train.occasions import Occasion, Occasions
from holdfast.train.pace import Pace
from holdfast.train.records import Records, tell
from holdfast.train.saver import Head, KindsOf, Saver
from holdfast.train.setting import Setting
from holdfast.train.trackers import mlflow_run_id


class Pulse:
    """The rank's heartbeat page, written only where something changed."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.phase = Phase.STARTING

    def enter(self, phase: Phase) -> Phase:
        """Say what training does now; returns what it did before."""
        before = self.phase
        if phase is not before:
            self.phase = phase
            self.page.set(phase=phase, beat_ns=time.monotonic_ns())
        return before

    def beat(self) -> None:
        """A sign of life."""
        self.page.set(beat_ns=time.monotonic_ns())


class Saves:
    """One rank's saves: none blocks training for longer than the copy, unless it is told to wait."""

    def __init__(
        self, setting: Setting, link: Link, saver: Saver, pulse: Pulse, records: Records, occasions: Occasions
    ) -> None:
        self._setting, self._link, self._saver = setting, link, saver
        self._pulse, self._records, self._occasions = pulse, records, occasions
        self._began = self._last = Point(0, 0, time.monotonic())
        self._best: float | None = None  # value of `keep.best` with which a checkpoint was made
        self._hoped: dict[int, float] = {}  # the values of saves in flight, by sequence
        self._accord = Accord(setting, pulse.page)
        self._pace = Pace(setting, records, restart_s=age_s(), memory=lambda: pulse.page.get("memory_blocked_ns") > 0)
        self._wanted = ""  # why this rank wants all ranks to save
        self.signalled = False  # SIGUSR1 came
        self._blocked_ns = 0
        self._ended: dict[int, str] = {}  # sequence of saves of this process that ended -> why it failed, or empty
        self._reasons: dict[int, tuple[int, str]] = {}  # sequence of saves in flight -> epoch, reason
        self._busy_told = False
        self._tracker = ""  # id that was told
        self._noted: set[str] = set()

    def begin_at(self, step: int, epoch: int, best: float | None) -> None:
        """Triggers count from here; `best` is what the checkpoint said that was loaded."""
        self._began = self._last = Point(step, epoch, time.monotonic())
        self._best = best

    def reason(self, now: Point, metrics: Mapping[str, float]) -> str:
        """Why a save is due now; empty when none is."""
        page, setting = self._pulse.page, self._setting
        number, handled = page.get("save_number"), page.get("save_handled")
        if requested(number=number, handled=handled, at_step=page.get("save_at_step"), step=now.step):
            return self._wanted or "requested"
        due = counted(setting.every, last=self._last, now=now)
        wanted = "" if due else self._wish(now, metrics)
        if setting.world == 1:
            return due or wanted
        if wanted and not self._reasons:  # one in flight: a rank that finds no slot would save at another step
            self._wanted = wanted
            self._accord.want()
        self._accord.lead((now.now_s - self._began.now_s) / max(1, now.step - self._began.step))
        return due

    def _wish(self, now: Point, metrics: Mapping[str, float]) -> str:
        """What only one rank may decide: by the clock and by a metric rank 0, by a signal who got it."""
        if self.signalled:
            return "signal"
        if self._setting.rank:
            return ""
        best = self._setting.keep_best
        if (
            best
            and self.best_with(metrics) != self.best_with({})
            and now.now_s - self._last.now_s >= self._pace.least_s
        ):
            return f"{best.metric} improved"
        return timed(self._setting.every, last=self._last, now=now, auto_s=self._pace.interval_s)

    def best_with(self, metrics: Mapping[str, float]) -> float | None:
        """The best value of `keep.best` once a checkpoint with these metrics is made, and those in flight."""
        best, found = self._setting.keep_best, self._best
        if best is None:
            return found
        for value in (*self._hoped.values(), metrics.get(best.metric)):
            if value is not None and improves(best, value, found):
                found = value
        return found

    def _hope(self, sequence: int, metrics: Mapping[str, float]) -> None:
        best = self._setting.keep_best
        if best and best.metric in metrics:
            self._hoped[sequence] = metrics[best.metric]

    def save(
        self, head: Head, values: Callable[[], Mapping[str, Any]], kinds_of: KindsOf, *, patient: bool, lazily: bool
    ) -> int | None:
        """Seal a slot; the archiver does the rest. Returns its sequence, None when there was no slot or no memory.

        patient: wait for a slot, and raise StoreRefused instead of returning None. lazily: a device may copy what
        optimizers own until one steps.
        """
        slot = self._slot_for(head, patient=patient)
        if slot is None:
            self._tell_busy(head)
            return None
        number = self._pulse.page.get("save_number")
        self._occasions.call(Occasion(name="before_save", step=head.step, epoch=head.epoch, reason=head.reason))
        before, began_s = self._pulse.enter(Phase.SAVING), time.monotonic()
        try:
            sequence, notes = self._saver.seal(slot, values(), kinds_of, head, lazily=lazily)
        except OSError as error:
            if self._link.leave_files(error.strerror):
                self._records.event("warning", id="memory-dir-unusable", message=self._link.warning)
                return self.save(head, values, kinds_of, patient=patient, lazily=lazily)
            self._failed(head.step, head.epoch, head.reason, f"no memory for the copy: {error.strerror}")
            told = f"the save of step {head.step} failed: {error.strerror}"  # nobody else knows: it never left us
            self._records.event("warning", id="save-failed", message=told)
            if patient:
                raise StoreRefused(
                    f"step {head.step} could not be saved: {error.strerror}",
                    hint="give the machine or container more memory",
                ) from error
            return None
        finally:
            self._last = Point(head.step, head.epoch, time.monotonic())
            blocked_s = self._last.now_s - began_s
            self._blocked_ns += int(blocked_s * 1e9)
            self._pace.blocked(blocked_s)
            self._pulse.enter(before)
        self._pulse.page.set(blocked_ns=self._blocked_ns, save_handled=number)
        self._reasons[sequence] = (head.epoch, head.reason)
        self._records.event("sealed", step=head.step, sequence=sequence, reason=head.reason, seconds=blocked_s)
        self._hope(sequence, head.metrics)
        self._wanted, self.signalled = "", False
        self._note(notes)
        self._note_tracker(head.step)
        self._busy_told = False
        return sequence

    def _slot_for(self, head: Head, *, patient: bool) -> Slot | None:
        """A slot to write; None when this boundary has no save. Several ranks find the same answer."""
        slot = self._link.free_slot()
        ready = patient or slot is not None
        decided = self._accord.decides(head.boundary, head.step, ready=ready, meanwhile=self._pulse.beat)
        if patient:
            return slot or self.free_slot()
        if decided is False:
            return None
        return slot or (self._awaited_slot(FOLLOW_S) if decided else None)

    def _note_tracker(self, step: int) -> None:
        """With the first save after a tracker has begun: what is lost with an earlier kill is begun anew as well."""
        found = mlflow_run_id()
        if found and found != self._tracker:
            self._tracker = found
            self._records.event("tracker", step=step, variable="MLFLOW_RUN_ID", value=found)

    def _tell_busy(self, head: Head) -> None:
        if not self._busy_told:
            self._busy_told = True
            self._records.event(
                "save_skipped", step=head.step, reason=head.reason, message="every slot is being archived"
            )

    def _note(self, notes: tuple[str, ...]) -> None:
        for note in notes:
            if note not in self._noted:
                self._noted.add(note)
                self._records.event("warning", message=note)

    def poll(self) -> None:
        """Take note of saves that ended."""
        for done in self._saver.poll():
            epoch, reason = self._reasons.pop(done.sequence)
            hoped = self._hoped.pop(done.sequence, None)
            self._ended = {done.sequence: done.error, **{s: e for s, e in self._ended.items() if s > done.sequence - 8}}
            if done.error:
                self._failed(done.step, epoch, reason, done.error)
                continue
            best = self._setting.keep_best
            if best and hoped is not None and improves(best, hoped, self._best):
                self._best = hoped
            self._pulse.page.set(committed_step=done.step, committed_sequence=done.sequence)
            self._pace.written(done.archived_s)
            if self._setting.every.auto and self._setting.rank == 0:
                self._pace.tell(done.step)
            self._records.event("committed", step=done.step, sequence=done.sequence, reason=reason)
            self._occasions.call(Occasion(name="committed", step=done.step, epoch=epoch, reason=reason))

    def _failed(self, step: int, epoch: int, reason: str, error: str) -> None:
        self._records.event("save_failed", step=step, reason=reason, message=error)
        tell(f"the save of step {step} failed, training goes on: {error}")
        self._occasions.call(Occasion(name="save_failed", step=step, epoch=epoch, reason=reason, error=error))

    def failed(self, sequence: int | None) -> bool:
        """Whether that save is known to have failed."""
        return bool(self._ended.get(sequence)) if sequence is not None else False

    def is_durable(self, sequence: int | None) -> bool:
        """Whether that save is known to be."""
        return sequence is not None and self._ended.get(sequence) == ""

    def has_news(self, head: Head, *, mine: bool) -> bool:
        """As `Accord.has_news` at the boundary of `head`, for as long as a save may take."""
        before = self._pulse.enter(Phase.WAITING)
        try:
            timeout_s = self._setting.timeout_s
            return self._accord.has_news(head.boundary, mine=mine, timeout_s=timeout_s, meanwhile=self._meanwhile)
        finally:
            self._pulse.enter(before)

    def free_slot(self) -> Slot:
        """A slot to write, waiting for one. Raises StoreRefused after `checkpoint.timeout`."""
        found = self._awaited_slot(self._setting.timeout_s)
        if found is None:
            raise StoreRefused(
                f"no slot came free within {self._setting.timeout_s:g} s", hint=f"see {self._setting.run.archiver_log}"
            )
        return found

    def _awaited_slot(self, timeout_s: float) -> Slot | None:
        found: list[Slot] = []

        def got() -> bool:
            slot = self._link.free_slot()
            found.extend([slot] if slot else [])
            return bool(found)

        return found[0] if self._wait(got, timeout_s) else None

    def await_durable(self, sequence: int, step: int) -> None:
        """Return when the save is durable. Raises StoreRefused when it failed, or after `checkpoint.timeout`."""
        if not self._wait(lambda: sequence in self._ended, self._setting.timeout_s):
            raise StoreRefused(
                f"the checkpoint of step {step} was not durable within {self._setting.timeout_s:g} s",
                hint=f"see {self._setting.run.archiver_log}",
            )
        if self._ended[sequence]:
            raise StoreRefused(
                f"the checkpoint of step {step} was refused: {self._ended[sequence]}", hint="free some space"
            )

    def _wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        before = self._pulse.enter(Phase.WAITING)
        try:
            self._meanwhile()
            return self._saver.wait(until, timeout_s=timeout_s, meanwhile=self._meanwhile)
        finally:
            self._pulse.enter(before)

    def _meanwhile(self) -> None:
        self._pulse.beat()
        self.poll()
        self._link.check(time.monotonic())
