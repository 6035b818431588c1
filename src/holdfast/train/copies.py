"""The memory tier from the rank's side: copies of the state that the archiver is not told of.

They outlive this process, so that the next one continues where this one was killed. They cost what the copy costs:
`checkpoint.cadence` decides how often that is worth it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from holdfast.checkpoint import cadence
from holdfast.checkpoint.cadence import Pace
from holdfast.checkpoint.slots import Slot, State
from holdfast.heartbeat import Page, Phase, page_path
from holdfast.train.link import Link
from holdfast.train.occasions import Occasion, Occasions
from holdfast.train.records import Records
from holdfast.train.saver import Head, KindsOf, Saver
from holdfast.train.saves import Pulse
from holdfast.train.setting import Setting

_CHECK_S = 1.0


class Copies:
    """When this rank copies its state into memory, and what became of that."""

    def __init__(
        self, setting: Setting, link: Link, saver: Saver, pulse: Pulse, records: Records, occasions: Occasions
    ) -> None:
        self._setting, self._link, self._saver = setting, link, saver
        self._pulse, self._records, self._occasions = pulse, records, occasions
        self._pace = Pace()
        self._others: list[Page] = []  # of the other ranks, mapped when first needed
        self._last_s = self._stepped_s = time.monotonic()
        self._source: Slot | None = None  # what we began from, until a step is complete
        self._told = -1  # number of slots that was told
        self._checked_s = -_CHECK_S
        self._blocked_ns = 0
        if setting.memory.on:  # a save to disk is a copy in memory too; either may be whole only at a later boundary
            saver.kept = self._tell_page

    def begin(self, slot: Slot, step: int) -> None:
        """This attempt continues from a copy in memory."""
        slot.set(tries=slot.get("tries") + 1)
        self._source = slot
        self._tell_page(step)

    def stepped(self, now_s: float) -> None:
        """One more step is complete."""
        self._pace = self._pace.after_step(now_s - self._stepped_s)
        if self._source is not None:
            self._source.set(tries=0)
            self._source = None

    def is_due(self, step: int, now_s: float) -> bool:
        """Whether a copy is to be made at this boundary."""
        if not self._setting.memory.on or not step:
            return False
        alone, passed_s = self._setting.world == 1, now_s - self._last_s
        return cadence.due(self._setting.memory, step=step, agreed_steps=self._agreed(), passed_s=passed_s, alone=alone)

    def make(
        self, head: Head, values: Callable[[], Mapping[str, Any]], kinds_of: KindsOf, *, lazily: bool = False
    ) -> None:
        """Copy the state, where there is a slot for it; training goes on either way. lazily: as in `Saver.seal`."""
        slot = self._link.free_slot(for_memory=True)
        if slot is None:
            return
        before, began_s = self._pulse.enter(Phase.SAVING), time.monotonic()
        try:
            self._occasions.call(Occasion(name="before_save", step=head.step, epoch=head.epoch, reason=head.reason))
            self._saver.seal(slot, values(), kinds_of, head, into=State.HELD, lazily=lazily)
        except OSError as error:
            if self._link.leave_files(error.strerror):
                self._records.event("warning", id="memory-dir-unusable", message=self._link.warning)
                return
            self._tell(0, f"no copy is kept in memory: {error.strerror or error}")
            return
        finally:
            self._pulse.enter(before)
            copy_s = time.monotonic() - began_s
            self._blocked_ns += int(copy_s * 1e9)
        self._pace = self._pace.after_copy(copy_s, self._setting.memory, self._setting.max_overhead_ratio)
        self._pulse.page.set(memory_steps=self._pace.steps, memory_blocked_ns=self._blocked_ns)
        self.saved()

    def saved(self) -> None:
        """The state was copied into a slot, by us or by a save to disk: the next copy is due from here."""
        if not self._setting.memory.on:
            return
        self._last_s = time.monotonic()
        if self._last_s > self._checked_s + _CHECK_S:
            self._checked_s = self._last_s
            self._tell(*self._link.reduced())

    def resume_clock(self) -> None:
        """What has to do with saving is done: the next step begins."""
        self._stepped_s = time.monotonic()

    def _tell_page(self, step: int) -> None:
        self._pulse.page.set(memory_step=step, memory_at_s=int(time.time()))

    def _agreed(self) -> int:
        if self._setting.world == 1:
            return self._pace.steps
        if not self._others:
            ranks = (rank for rank in range(self._setting.world) if rank != self._setting.rank)
            self._others = [Page(page_path(self._setting.run.runtime, rank)) for rank in ranks]
        attempt = self._setting.attempt
        told = [page.get("memory_steps") for page in self._others if page.get("attempt") == attempt]
        return max([self._pace.steps, *told])

    def _tell(self, count: int, sentence: str) -> None:
        if sentence and count != self._told:
            self._told = count
            self._records.event("warning", id="memory-tier-reduced", message=sentence)
