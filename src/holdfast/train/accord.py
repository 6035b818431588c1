"""How several ranks come to save, or to stop, at one step when a clock, a metric or a signal says so to one of them.

That rank says in its heartbeat page what is wanted. Whoever may write the lower half of the pages then names a
step that no rank has reached: the supervisor; among ranks without one, rank 0.
"""

from __future__ import annotations

from holdfast.heartbeat import Page, meeting_step, page_path
from holdfast.train.setting import Setting


class Accord:
    """One rank's part in it."""

    def __init__(self, setting: Setting, page: Page) -> None:
        self._page = page
        self._leads = setting.alone and setting.world > 1 and setting.rank == 0
        paths = [page_path(setting.run.runtime, rank) for rank in range(1, setting.world)] if self._leads else []
        self._pages = [page, *map(Page, paths)]
        self._world = setting.world

    def want(self) -> None:
        """All ranks should save soon. Nothing is added to a request that is still open."""
        number = self._page.get("save_number")
        if number <= self._page.get("save_handled"):
            self._page.set(save_wanted=number + 1)

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
