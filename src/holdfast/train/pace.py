"""What saves to disk cost this process of late, and the interval that follows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from holdfast import goodput
from holdfast.train.records import Records
from holdfast.train.setting import Setting

_RECENT = 5  # saves whose median counts: the first ones also fault in memory that the later ones find there
_TOLD_RATIO = 0.1  # a choice that differs by less is not told again


class Pace:
    """Measures, chooses anew with each save, and tells the records when the choice has changed."""

    def __init__(self, setting: Setting, records: Records, *, restart_s: float, memory: Callable[[], bool]) -> None:
        """`restart_s`: from this process' start to where training goes on. `memory`: whether copies are kept there."""
        self._setting, self._records = setting, records
        self._restart_s, self._memory = restart_s, memory
        self._began_s = time.monotonic()
        self._blocked_s: deque[float] = deque(maxlen=_RECENT)
        self._written_s: deque[float] = deque(maxlen=_RECENT)
        self._told_s = 0.0
        self._interval = self._choose()

    def blocked(self, seconds: float) -> None:
        """A save took this long from training."""
        self._blocked_s.append(seconds)
        self._interval = self._choose()

    def written(self, seconds: float) -> None:
        """A save was safe so long after it was sealed."""
        self._written_s.append(seconds)
        self._interval = self._choose()

    @property
    def interval_s(self) -> float:
        """Seconds from one save to the next that cost least."""
        return self._interval.seconds

    @property
    def least_s(self) -> float:
        """Seconds from one save to the next that the overhead and the writing allow."""
        return goodput.least_s(self._costs(), self._setting.max_overhead_ratio)

    def _costs(self) -> goodput.Costs:
        return goodput.Costs(
            blocked_s=median(self._blocked_s) if self._blocked_s else 0.0,
            write_s=median(self._written_s) if self._written_s else 0.0,
            restart_s=self._restart_s,
        )

    def _choose(self) -> goodput.Interval:
        ours_s = time.monotonic() - self._began_s
        seen = replace(self._setting.seen, trained_s=self._setting.seen.trained_s + ours_s)
        ratio = self._setting.max_overhead_ratio
        return goodput.interval("disk", self._costs(), seen, memory=self._memory(), max_overhead_ratio=ratio)

    def tell(self, step: int) -> None:
        """Put the choice into the records when it differs from the one told last."""
        chosen_s = self._interval.seconds
        if abs(chosen_s - self._told_s) > _TOLD_RATIO * self._told_s:
            self._told_s = chosen_s
            self._records.event("interval", step=step, **self._interval.to_json())
