"""What a job of the archiver raised and nobody foresaw: a finding, and a trace in node.log, once for each sentence."""

from __future__ import annotations

import sys
import traceback

from holdfast.node.eventlog import EventLog


class Mishaps:
    """Those of one archiver."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._told: set[str] = set()

    def tell(self, worker: str, error: BaseException) -> None:
        """A job of the thread `worker` raised `error`."""
        message = f"a job of the thread {worker} failed: {type(error).__name__}: {error}"[:1000]
        if message not in self._told:
            self._told.add(message)
            traceback.print_exception(error, file=sys.stderr)
            self._log.write("warning", id="archiver-failed", message=message)
