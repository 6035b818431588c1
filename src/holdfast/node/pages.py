"""The heartbeat pages of all ranks, seen from the supervisor."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

from holdfast.heartbeat import Beat, Page

AHEAD_S = 0.05  # how far ahead of every rank a common step is set, so that no rank passes it while we write


class Pages:
    """Maps what appears in `folder`; one writer of the supervisor's half."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pages: dict[str, Page] = {}

    def clear(self) -> None:
        """Forget every page and remove its file: the next attempt makes its own. No trainer may live."""
        for page in self._pages.values():
            page.close()
        self._pages.clear()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)

    def beats(self, attempt: int) -> list[Beat]:
        """What the ranks of `attempt` say, by rank."""
        return sorted((beat for _, beat in self._of(attempt)), key=lambda beat: beat.rank)

    def _of(self, attempt: int) -> list[tuple[Page, Beat]]:
        self._map_new()
        found = []
        for page in self._pages.values():
            with contextlib.suppress(ValueError):  # a phase of another version
                beat = page.read()
                if beat is not None and beat.attempt == attempt:
                    found.append((page, beat))
        return found

    def _map_new(self) -> None:
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.name.startswith("rank-") and path.name not in self._pages:
                    self._pages[path.name] = Page(path)

    def save(self, attempt: int, number: int, *, step_s: float) -> None:
        """Ask every rank for save `number`."""
        found = self._of(attempt)
        at_step = meeting_step([beat for _, beat in found], step_s)
        for page, _ in found:
            page.set(save_at_step=at_step, save_number=number)

    def stop(self, attempt: int, *, step_s: float) -> bool:
        """Ask every rank to save and leave, at one common step; False when there is no rank to ask."""
        found = self._of(attempt)
        agreed = max((page.get("stop_at_step") for page, _ in found), default=0)
        at_step = agreed or meeting_step([beat for _, beat in found], step_s)
        for page, _ in found:
            if page.get("stop_at_step") == 0:
                page.set(stop_at_step=at_step)
        return bool(found)


def meeting_step(beats: list[Beat], step_s: float) -> int:
    """The first step that no rank can have completed before all were told; `step_s` is how long a step takes."""
    newest = max((max(beat.step, beat.first_step) for beat in beats), default=0)
    ahead = 0 if len(beats) < 2 else math.ceil(AHEAD_S / step_s) if step_s > 0 else 1
    return newest + 1 + min(ahead, 1000)
