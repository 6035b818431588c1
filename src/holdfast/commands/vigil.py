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
        self._up_s = time.monotonic()  # when the call was last seen on a link that is up, or began
        self._away_s: float | None = None  # since when
        self._is_on = self._is_cut = self._has_said = False  # `_is_on`: the call was on the link at least once
        self.why = "nothing came from it"  # the link is away

    async def look(self) -> None:
        """Until the link is away for too long. Without a sign of life it is suspect long before its connections end."""
        from holdfast.link.states import State

        while self._is_borne():
            await asyncio.sleep(LOOK_S)
            state = await asyncio.to_thread(self._there.standing)
            if state != State.UP.value:
                self._gone(state)
            elif self._is_cut:
                self._gone("connecting")  # the link is there again, and this call not yet on it
            else:
                self._back()

    def cut(self, standing: Standing) -> bool:
        """The connection has ended, or is there again. False when it has been away for too long."""
        self._is_cut = standing.away_s is not None
        if standing.away_s is None:
            self._is_on = True
            self._back()
            return True
        self.why = standing.why
        if self._away_s is None:
            since_s = time.monotonic() - standing.away_s
            self._away_s = since_s if self._is_on else min(since_s, self._up_s)
        return self._is_borne()

    def gave_up(self, error: HostUnreachable) -> HostUnreachable:
        """What to raise when nobody waits any more: `error`, with how the link stands."""
        if self._away_s is None:
            return HostUnreachable(
                f"{self._there.host}: the link is {self._there.standing()}, and nothing of ours has answered there for "
                f"{self._waited():.0f} s",
                hint=error.hint or f"does its shell come to an end? ssh {self._there.host} true",
            )
        return HostUnreachable(
            f"{self._there.host}: the link is {self._there.standing()}, away for {self._lasted():.0f} s: {error}",
            hint=error.hint or "what was begun there goes on",
        )

    def _gone(self, state: str) -> None:
        self._away_s = self._up_s if self._away_s is None else self._away_s
        if self._lasted() >= TELL_S and not self._has_said:
            self._has_said = True
            say(f"{self._there.host}: {state} for {self._lasted():.0f} s …")

    def _back(self) -> None:
        if self._has_said:
            say(f"{self._there.host}: back after {self._lasted():.0f} s")
        self._away_s, self._has_said = None, False
        if self._is_on:
            self._up_s = time.monotonic()

    def _is_borne(self) -> bool:
        return self._patience_s is None or self._waited() < self._patience_s

    def _waited(self) -> float:
        """Seconds that this call has not been on the link."""
        return self._lasted() if self._is_on or self._away_s is not None else time.monotonic() - self._up_s

    def _lasted(self) -> float:
        """Seconds that the link has been away."""
        return 0.0 if self._away_s is None else time.monotonic() - self._away_s
