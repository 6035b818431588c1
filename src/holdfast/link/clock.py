"""A clock that goes on while the machine sleeps, on Linux and on macOS."""

from __future__ import annotations

import time

# time.monotonic() stops while the machine sleeps; on macOS CLOCK_MONOTONIC goes on, and there is no other name for it.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now_s() -> float:
    """Seconds since the machine was started, those in which it slept included."""
    return time.clock_gettime(_CLOCK)


def asleep_s() -> float:
    """How long the machine has slept since it was started."""
    return now_s() - time.monotonic()
