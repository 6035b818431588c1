"""A few threads for what releases the interpreter lock: hashing, reading."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

THREADS = 2
AHEAD = 64  # calls in flight: enough 2 MiB chunks to hash the next pack while one is written


def ordered(function: Callable[[In], Out], items: Iterable[In], *, ahead: int = AHEAD) -> Generator[Out, None, None]:
    """`map` on `THREADS` threads, results in the order of `items`, no more than `ahead` of them waiting.

    Close the generator when leaving early (`contextlib.closing`): that waits for the calls in flight, so that no
    thread holds memory of the caller afterwards.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
