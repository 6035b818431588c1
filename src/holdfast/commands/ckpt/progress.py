"""A bar on stderr for what takes long: only where a person looks, and only once it has taken two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE_S = 2.0


@contextmanager
def bar(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to be called with the bytes done since the last call."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    shown = Progress(*columns, console=Console(stderr=True), transient=True)
    task, began_s = shown.add_task(what, total=total_bytes), time.monotonic()

    def advance(done: int) -> None:
        shown.advance(task, done)
        if not shown.live.is_started and time.monotonic() - began_s > _PATIENCE_S:
            shown.start()

    try:
        yield advance
    finally:
        if shown.live.is_started:
            shown.stop()
