"""The one way in which tests wait: ask again until it is so, or fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def until(condition: Callable[[], Value], within_s: float = 10.0) -> Value:
    """The first truthy value of `condition`. Raises TimeoutError after `within_s`, in seconds."""
    deadline_s = time.monotonic() + within_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"still {value!r} after {within_s} s")
        time.sleep(0.01)
