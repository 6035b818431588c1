"""What a job of the archiver raised and nobody foresaw: a finding, and a trace in node.log, once for each sentence.

It is over once jobs have ended well for so long that whatever failed was tried again meanwhile.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable

from holdfast.node.eventlog import EventLog

CALM_S = 120.0  # twice the longest pause before something that failed is tried again


class Mishaps:
    """Those of one archiver."""

    def __init__(self, log: EventLog, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds that never go back."""
        self._log, self._clock = log, clock
        self._told: set[str] = set()
        self._last_s = clock()
        self._over = False  # an archiver before this one may have told of some

    def tell(self, worker: str, error: BaseException | None) -> None:
        """A job of the thread `worker` raised `error`, or ended well."""
        if error is not None:
            self._raised(f"a job of the thread {worker} failed: {type(error).__name__}: {error}"[:1000], error)
        elif not self._over and self._clock() - self._last_s >= CALM_S:
            self._over = True
            self._told.clear()
            self._log.write("cleared", id="archiver-failed")

    def _raised(self, message: str, error: BaseException) -> None:
        self._last_s, self._over = self._clock(), False
        if message not in self._told:
            self._told.add(message)
            traceback.print_exception(error, file=sys.stderr)
            self._log.write("warning", id="archiver-failed", message=message)
