"""Wait for a fact instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(
    condition: Callable[[], T], within_s: float = 60.0, *, every_s: float = 0.02, what: str | Callable[[], str] = ""
) -> T:
    """The first truthy value of `condition`; fails after `within_s` with `what` and the last value."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            told = what() if callable(what) else what
            raise AssertionError(f"not within {within_s:g} s: {told or condition!r}; last value {value!r}")
        time.sleep(every_s)
