"""A progress bar for what takes longer than a look: on stderr, only where a person looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (bytes done, bytes in all); silent when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(description, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def bar_once_moving(description: str) -> Iterator[Callable[[int, int], None]]:
    """The same for what is seldom needed: nothing is shown, and nothing loaded for it, before the first call."""
    with ExitStack() as shown:
        update: Callable[[int, int], None] | None = None

        def moved(done: int, total: int) -> None:
            nonlocal update
            if update is None:
                update = shown.enter_context(bar(description))
            update(done, total)

        yield moved
