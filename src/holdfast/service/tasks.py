"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 0.1


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel, and come back when all have ended, however: an error is the caller's to ask for.

    Again and again: before Python 3.12 `wait_for` drops a cancellation that comes together with its result.
    """
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()
