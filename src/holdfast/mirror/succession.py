"""When another machine of a pool goes on with a run: by what the mirror says, and by nothing else.

Pure but for `look`. Silence is counted by the store's clock. A mirror that cannot be read proves nothing: a store that
was away has kept the run's machine from giving signs of life too, so that one gets the time to give one again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from holdfast.mirror.fence import GONE_S, alive, is_told_to_stop, leases_on
from holdfast.stores import Store

LOOK_S = 20.0
REST_S = 300.0  # between looks at a run that is at rest
LEAVE_S = 86400.0  # of rest, after which nobody stands by any more
BUSY_S = 120.0  # how much longer one waits whose devices are not free: another one's may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the mirror says. `age_s`: of the newest sign of life; None where nobody claims to live."""

    begun: bool  # somebody holds it, or has held it
    age_s: float | None = None
    host: str = ""
    stopped: bool = False  # somebody has told the run to stop


class Next(Enum):
    """What one that stands by does after a look."""

    WATCH = "watching"
    REST = "at rest"
    TAKE = "taking over"
    LEAVE = "leaving"


def look(store: Store) -> Look:
    """Ask the mirror. Raises StoreRefused."""
    if is_told_to_stop(store):
        return Look(begun=True, stopped=True)
    found = alive(store)
    if found is not None:
        return Look(begun=True, age_s=found.age_s, host=found.owner.host)
    return Look(begun=bool(leases_on(store)))


def decide(seen: Look, *, failover_s: float, free: bool, watched_s: float, rested_s: float) -> Next:
    """What follows from a look. Pure.

    failover_s: silence after which another machine goes on. free: this one has the devices now. watched_s: since the
    mirror could not be read last. rested_s: since somebody claimed to live last.
    """
    if seen.stopped:
        return Next.LEAVE
    if seen.age_s is None:
        if rested_s >= LEAVE_S:
            return Next.LEAVE
        return Next.REST if seen.begun else Next.WATCH
    patience_s = failover_s + (0.0 if free else BUSY_S)
    return Next.TAKE if seen.age_s >= patience_s and watched_s >= GONE_S else Next.WATCH
