"""What sending to the mirror cost of late, and the interval that follows where `auto` decides.

An upload stops nothing, but the processors it keeps busy are those of training: its processor time, spread over all of
them, is counted as if training had stood still for so long. To come back takes about as long as it took to send.
"""

from __future__ import annotations

import os
from collections import deque
from statistics import median

from holdfast import goodput
from holdfast.goodput import Failures
from holdfast.node.eventlog import EventLog

_RECENT = 5  # uploads whose median counts
_TOLD_RATIO = 0.1  # a choice that differs by less is not told again


class MirrorPace:
    """Chooses anew with each upload, and tells when the choice has changed."""

    def __init__(self, log: EventLog, max_overhead_ratio: float) -> None:
        self.interval_s = 0.0  # from one checkpoint on the mirror to the next
        self._log, self._max_overhead_ratio = log, max_overhead_ratio
        self._sent_s: deque[float] = deque(maxlen=_RECENT)
        self._blocked_s: deque[float] = deque(maxlen=_RECENT)
        self._told_s = 0.0

    def sent(self, seconds: float, processor_s: float, seen: Failures) -> None:
        """A checkpoint was on the mirror after `seconds`, for which this process used its processors `processor_s`."""
        self._sent_s.append(seconds)
        self._blocked_s.append(processor_s / len(os.sched_getaffinity(0)))
        sent_s = median(self._sent_s)
        costs = goodput.Costs(blocked_s=median(self._blocked_s), write_s=sent_s, restart_s=sent_s)
        ratio = self._max_overhead_ratio
        chosen = goodput.interval("mirror", costs, seen, memory=False, max_overhead_ratio=ratio)
        self.interval_s = chosen.seconds
        if abs(chosen.seconds - self._told_s) > _TOLD_RATIO * self._told_s:
            self._told_s = chosen.seconds
            self._log.write("interval", **chosen.to_json())
