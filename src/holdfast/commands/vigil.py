"""What a person is told of the link below one call: once that it is away, once that it is back. Never on stdout."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from holdfast.commands.arguments import say
from holdfast.errors import HostUnreachable

if TYPE_CHECKING:
    from holdfast.commands.reach import Reach
    from holdfast.service.client import Standing

LOOK_S = 1.0
TELL_S = 2.0  # what is back sooner is not worth a word


class Vigil:
    """Over one call. `patience_s`: how long the link may be away; None: for ever."""

    def __init__(self, there: Reach, patience_s: float | None) -> None:
        self._there, self._patience_s = there, patience_s
        self._away_s: float | None = None  # since when
        self._is_cut = self._has_said = False

    async def look(self) -> None:
        """Until cancelled. A link without a sign of life is suspect some time before its connections end."""
        from holdfast.link.states import State

        while True:
            await asyncio.sleep(LOOK_S)
            state = await asyncio.to_thread(self._there.standing)
            if state != State.UP.value:
                self._gone(time.monotonic(), state)
            elif self._is_cut:
                self._gone(time.monotonic(), "connecting")  # the link is there again, and this call not yet on it
            else:
                self._back()

    def cut(self, standing: Standing) -> bool:
        """The connection has ended, or is there again. False when it has been away for too long."""
        self._is_cut = standing.away_s is not None
        if standing.away_s is None:
            self._back()
            return True
        now_s = time.monotonic()
        if self._away_s is None:
            self._away_s = now_s - standing.away_s
        return self._patience_s is None or self._lasted(now_s) < self._patience_s

    def gave_up(self, error: HostUnreachable) -> HostUnreachable:
        """What to raise when nobody waits any more: `error`, with how the link stands."""
        state, lasted = self._there.standing(), self._lasted(time.monotonic())
        return HostUnreachable(
            f"{self._there.host}: the link is {state}, away for {lasted:.0f} s: {error}",
            hint=error.hint or "what was begun there goes on",
        )

    def _gone(self, now_s: float, state: str) -> None:
        self._away_s = now_s if self._away_s is None else self._away_s
        lasted = self._lasted(now_s)
        if lasted >= TELL_S and not self._has_said:
            self._has_said = True
            say(f"{self._there.host}: {state} for {lasted:.0f} s …")

    def _back(self) -> None:
        if self._has_said:
            say(f"{self._there.host}: back after {self._lasted(time.monotonic()):.0f} s")
        self._away_s, self._has_said = None, False

    def _lasted(self, now_s: float) -> float:
        return 0.0 if self._away_s is None else now_s - self._away_s
