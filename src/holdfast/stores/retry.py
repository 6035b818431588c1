"""Try again what may work the next time: 5xx, 429, a connection that broke. Never what was refused.

Pauses are drawn from 0 to a bound that doubles ("full jitter"), so that many clients of a store that comes back do not
come back all at once. Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Out = TypeVar("Out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """`deadline_s`: no try begins later than this after the first one."""

    deadline_s: float = 60.0
    first_s: float = 0.2
    most_s: float = 10.0


PATIENT = Patience()
IMPATIENT = Patience(deadline_s=3.0)  # a person waits, and a failure does no harm


class Transient(Exception):
    """Worth another try; `__cause__` is what happened."""


def pause_s(tries: int, patience: Patience, rng: random.Random) -> float:
    """How long to wait after `tries` failures, 1 or more."""
    return rng.uniform(0.0, min(patience.most_s, patience.first_s * 2 ** (tries - 1)))


def retrying(call: Callable[[int], Out], patience: Patience, rng: random.Random) -> Out:
    """`call(number of failures so far)` until it does not raise Transient; the last Transient once time is up."""
    began_s, tries = time.monotonic(), 0
    while True:
        try:
            return call(tries)
        except Transient:  # noqa: PERF203 - trying again is what the loop is for
            tries += 1
            wait_s = pause_s(tries, patience, rng)
            if time.monotonic() + wait_s - began_s > patience.deadline_s:
                raise
            time.sleep(wait_s)
