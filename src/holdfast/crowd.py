"""Several things waited for at once, in threads, that Ctrl-C ends all of them: only the main thread is told of it.

A thread says how it is ended where it waits, by `ended_by`, `run` or `readable`. Where nobody made a crowd these wait
as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Crowd:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[object, Callable[[], None]] = {}
        self._is_over = False

    @contextlib.contextmanager
    def with_end(self, end: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            me = object()
            self._ends[me] = end
            if self._is_over:
                end()
        try:
            yield
        finally:
            with self._lock:  # from here on nobody calls it
                del self._ends[me]

    def leave(self) -> None:
        with self._lock:
            self._is_over = True
            for end in self._ends.values():
                end()


_own: ContextVar[_Crowd | None] = ContextVar("crowd", default=None)


def each(work: Callable[[T], R], items: Iterable[T], at_once: int) -> Iterator[R]:
    """What `work` gives for every item, so many at once; in the order of `items`, each as soon as it may.

    Whoever stops asking for more, by Ctrl-C or otherwise, ends what is waited for.
    """
    crowd = _Crowd()
    with ThreadPoolExecutor(max(1, at_once), initializer=_own.set, initargs=(crowd,)) as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            for future in waiting:
                yield future.result()
        finally:
            for future in waiting:
                future.cancel()
            crowd.leave()


@contextlib.contextmanager
def ended_by(end: Callable[[], None]) -> Iterator[None]:
    """Inside, `end` is called when nobody waits for the crowd any more, by any thread. It may not wait."""
    crowd = _own.get()
    with crowd.with_end(end) if crowd is not None else contextlib.nullcontext():
        yield


def run(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`. Raises asyncio.CancelledError when nobody waits for the crowd any more."""

    if _own.get() is None:
        return asyncio.run(work)

    async def ended() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)

        def end() -> None:
            loop.call_soon_threadsafe(task.cancel)

        with ended_by(end):
            return await task

    return asyncio.run(ended())


def readable(descriptor: int) -> bool:
    """Wait until there is something to read; False when nobody waits for the crowd any more."""
    woken, wake = os.pipe()

    def end() -> None:
        os.write(wake, b"!")

    try:
        with ended_by(end):
            return woken not in select.select([descriptor, woken], [], [])[0]
    finally:
        os.close(woken)
        os.close(wake)
