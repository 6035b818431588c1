"""Waiting for a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(work: Awaitable[T], within_s: float | None) -> T:
    """What `work` gives; it is cancelled when it takes longer. None: for ever. Raises asyncio.TimeoutError.

    Before Python 3.12 `asyncio.wait_for` keeps a cancellation to itself that comes together with the result.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=within_s)
        is_late = not task.done()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # else that of an `asyncio.gather` is told as one that nobody has asked for
    try:
        return task.result()
    except asyncio.CancelledError:
        if is_late:
            raise asyncio.TimeoutError from None
        raise
