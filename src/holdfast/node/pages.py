"""The heartbeat pages of all ranks, seen from the supervisor."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from holdfast.heartbeat import Beat, Page, meeting_step


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
        with contextlib.suppress(OSError):  # no rank has made the folder yet, or a page is half made: the next look
            for path in self._folder.iterdir():
                if path.name.startswith("rank-") and path.name not in self._pages:
                    self._pages[path.name] = Page(path)

    def save_wanted(self, attempt: int) -> bool:
        """Whether a rank wants all ranks to save, and nobody has asked them since."""
        return any(beat.save_wanted > page.get("save_number") for page, beat in self._of(attempt))

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


def newest_copy(beats: Sequence[Beat]) -> tuple[int, int]:
    """Step of the newest copy in memory that every rank says it holds, and when it was made, unix seconds; or 0, 0."""
    if not beats or len(beats) < beats[0].world:
        return 0, 0
    return min((beat.memory_step, beat.memory_at_s) for beat in beats)
