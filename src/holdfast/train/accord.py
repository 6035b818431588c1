"""How several ranks come to save, or to stop, at one step.

When a clock, a metric or a signal tells one rank to, it says in its heartbeat page what is wanted. Whoever may write
the lower half of the pages then names a step that no rank has reached: the supervisor; without one, rank 0.

When a save is due and every slot may be busy, rank 0 decides for all whether there is one: a rank that went by its own
slots would save at other steps than its neighbours, and a checkpoint needs all of them.

At the end of training each rank says whether it has anything new since its last save, and rank 0, which hears all, says
whether there is one more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from holdfast.heartbeat import Page, meeting_step, page_path
from holdfast.train.setting import Setting

FOLLOW_S = 10.0  # a rank waits no longer for another one at a boundary
_LOOK_S = 0.001
_LOOK_AT_ENDS_S = 0.01  # code behind the loop may take one rank long


class Accord:
    """One rank's part in it."""

    def __init__(self, setting: Setting, page: Page) -> None:
        self._page = page
        self._leads = setting.alone and setting.world > 1 and setting.rank == 0
        paths = [page_path(setting.run.runtime, rank) for rank in range(1, setting.world)] if self._leads else []
        self._pages = [page, *map(Page, paths)]
        self._world, self._attempt, self._runtime = setting.world, setting.attempt, setting.run.runtime
        follows = setting.world > 1 and setting.rank > 0
        self._first = Page(page_path(setting.run.runtime, 0)) if follows else None

    def want(self) -> None:
        """All ranks should save soon. Nothing is added to a request that is still open."""
        number = self._page.get("save_number")
        if number <= self._page.get("save_handled"):
            self._page.set(save_wanted=number + 1)

    def decides(self, boundary: int, step: int, *, ready: bool, meanwhile: Callable[[], object]) -> bool | None:
        """Whether all ranks save at this boundary; None where each rank is left to itself. Rank 0 says, others wait.

        boundary: rises from one to the next. ready: this rank has a slot to write. `meanwhile` is called while waiting.
        """
        if self._world == 1:
            return None
        if self._first is None:
            self._page.note_decision(boundary, go=ready)
            return ready
        until_s = time.monotonic() + FOLLOW_S
        while (said := self._first.decision(boundary)) is None and time.monotonic() < until_s:
            if self._first.get("attempt") != self._attempt:
                return None  # rank 0 is on another machine, or not there yet
            if self._first.get("step") > step:
                return False  # it has gone on and wanted none
            meanwhile()
            time.sleep(_LOOK_S)
        return bool(said)

    def has_news(self, boundary: int, *, mine: bool, timeout_s: float, meanwhile: Callable[[], object]) -> bool:
        """Whether any rank has something new to save at this boundary, an end of training. All ranks find the same.

        Asked only by ranks that have a durable checkpoint of this attempt in common: none of them has yet to begin.
        Those without news wait for the others; one that has said nothing after `timeout_s` has none.
        """
        self._page.set(news=(boundary + 1) << 1 | mine)
        if mine:
            return True
        if self._first is not None:
            return _awaited(partial(self._told, self._first, boundary), timeout_s, meanwhile)
        pages = [Page(page_path(self._runtime, rank)) for rank in range(1, self._world)]
        found = _awaited(partial(self._heard, pages, boundary), timeout_s, meanwhile)
        for page in pages:
            page.close()
        if not found:
            self._page.note_decision(boundary, go=False)
        return found

    def _heard(self, pages: list[Page], boundary: int) -> bool | None:
        """What the pages of all other ranks say; None while one of those without news is missing."""
        if any(page.get("attempt") != self._attempt for page in pages):
            return True  # on another machine: nobody hears it
        said = {page.get("news") for page in pages}
        nothing = (boundary + 1) << 1
        return True if nothing | 1 in said else False if said == {nothing} else None

    def _told(self, first: Page, boundary: int) -> bool | None:
        return first.decision(boundary) if first.get("attempt") == self._attempt else True

    def lead(self, step_s: float) -> None:
        """Where there is no supervisor: name a step to all ranks if one of them wants a save or a stop."""
        if not self._leads:
            return
        save = any(page.get("save_wanted") > page.get("save_number") for page in self._pages)
        stop = any(page.get("stop_wanted") for page in self._pages) and not self._page.get("stop_at_step")
        if not save and not stop:
            return
        beats = [beat for beat in (page.read() for page in self._pages) if beat and beat.world == self._world]
        if len(beats) < self._world:
            return  # one is still on its way: at a later step
        number, at_step = 1 + max(page.get("save_number") for page in self._pages), meeting_step(beats, step_s)
        for page in self._pages:
            if save:
                page.set(save_at_step=at_step, save_number=number)
            if stop:
                page.set(stop_at_step=at_step)


def _awaited(found: Callable[[], bool | None], timeout_s: float, meanwhile: Callable[[], object]) -> bool:
    """What `found` says once it is not None; False after `timeout_s`."""
    until_s = time.monotonic() + timeout_s
    while (said := found()) is None and time.monotonic() < until_s:
        meanwhile()
        time.sleep(_LOOK_AT_ENDS_S)
    return bool(said)
