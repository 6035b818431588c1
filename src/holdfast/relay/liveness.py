"""Whether a connection still lives, from when it was last heard. Pure."""

from __future__ import annotations

from enum import Enum

TICK_S = 1.0  # how often one looks
PING_AFTER_S = 5.0  # of silence
DEAD_AFTER_S = 10.0  # of silence
JUMP_S = 5.0  # a tick that takes so much longer: this machine was asleep


class Verdict(Enum):
    """What to do now."""

    FINE = "fine"
    PING = "ping"
    DEAD = "dead"


def judge(silent_s: float, ticked_s: float) -> Verdict:
    """After `silent_s` without a sign; the last tick took `ticked_s` of wall-clock time.

    After a sleep the connection is given up without a question: asking would cost the bound, and a new one costs a
    round trip or two.
    """
    if ticked_s > TICK_S + JUMP_S or silent_s >= DEAD_AFTER_S:
        return Verdict.DEAD
    return Verdict.PING if silent_s >= PING_AFTER_S else Verdict.FINE
