"""What to do about one link, and when. Pure: time comes in, actions go out; `master.py` carries them out.

    down ──wanted──▶ connecting ──open──▶ up ◀──heard── suspect ──silent──▶ dead ──gone──▶ down
                        │ refused for a cause that a person must mend: needs-authentication, until asked again

A link is judged by bytes that come from the other end: a master answers for itself long after its network has gone.
Silence is asked about by a ping that costs one round trip, at once after the machine slept or its routes changed. A
ping may have to wait behind what others send over a slow way; as long as the network takes or brings their bytes, that
is no silence. A way that resumes by itself (`resumes`) is never given up here: what carries it ends once it is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from holdfast.link.diagnosis import Cause, Why

FRESH_S = 1.0  # a sign of life so young is enough for who comes now
BUSY_PING_S = 5.0  # of silence, while somebody waits for the link
IDLE_PING_S = 15.0
LEAST_PATIENCE_S = 1.5
MORE_PATIENCE_S = 3.0  # from suspect to dead
CONNECT_S = 30.0  # a connection that is not open by then is given up
PERSON_S = 120.0  # for a person to answer what ssh asks: as long as a server waits, unless it is told otherwise
HURRY_S = 5.0
RESEND_S = 0.2  # the shortest time that TCP waits for an answer before it sends again (Linux TCP_RTO_MIN)
FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 60.0


class State(Enum):
    """Of a link, as people are told."""

    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"
    SUSPECT = "suspect"
    DEAD = "dead"
    NEEDS_AUTHENTICATION = "needs-authentication"


class Do(Enum):
    """What is to be done now."""

    CONNECT = "connect"
    PING = "ping"
    HANG_UP = "hang-up"  # end the master: it leads nowhere


@dataclass(frozen=True, slots=True)
class Link:
    """One link. Times are seconds of a clock that goes on while the machine sleeps."""

    state: State = State.DOWN
    since_s: float = 0.0
    wanted: bool = False  # a connection is to be there, or to come back
    busy: bool = False  # somebody waits for bytes
    asking: bool = False  # a person is asked for a password, or for a word about a host key
    heard_s: float = 0.0
    asked_s: float | None = None  # when the ping left that was not answered yet
    excused: bool = False  # that ping is no measure of the way: it waited for something else
    resumes: bool = False  # cuts are mended below, by what carries the connection
    trip_s: float = 0.0  # smoothed round trip, and its deviation (RFC 6298, section 2)
    deviation_s: float = 0.0
    loss_ratio: float = 0.0  # smoothed: pings that were late by at least what TCP waits before it sends again
    opened_s: float = 0.0
    failures: int = 0  # connections that failed since one was up
    due_s: float = 0.0  # not to connect before
    why: Why | None = None

    @property
    def patience_s(self) -> float:
        """How long a ping may stay unanswered without suspicion."""
        return max(LEAST_PATIENCE_S, 8 * self.trip_s + 4 * self.deviation_s)


def tick(link: Link, now_s: float) -> tuple[Link, tuple[Do, ...]]:
    """What is due at `now_s`."""
    if link.state is State.DOWN:
        if link.wanted and now_s >= link.due_s:
            return _to(link, State.CONNECTING, now_s), (Do.CONNECT,)
        return link, ()
    if link.state is State.CONNECTING:
        if now_s - link.since_s > (PERSON_S if link.asking else CONNECT_S):
            return _to(link, State.DEAD, now_s), (Do.HANG_UP,)
        return link, ()
    if link.state in (State.UP, State.SUSPECT):
        return _watch(link, now_s)
    return link, ()


def _watch(link: Link, now_s: float) -> tuple[Link, tuple[Do, ...]]:
    if link.asked_s is None:
        if now_s - link.heard_s >= (BUSY_PING_S if link.busy else IDLE_PING_S):
            return replace(link, asked_s=now_s), (Do.PING,)
        return link, ()
    silent_s = now_s - max(link.asked_s, link.heard_s)
    if link.state is State.UP and silent_s > link.patience_s:
        return _to(link, State.SUSPECT, now_s), ()
    if link.state is State.SUSPECT and silent_s > link.patience_s + MORE_PATIENCE_S:
        if link.resumes:
            return replace(link, excused=True), ()
        why = Why(Cause.LOST, f"nothing came for {silent_s:.0f} s")
        return replace(_to(link, State.DEAD, now_s), why=why), (Do.HANG_UP,)
    return link, ()


def want(link: Link, now_s: float) -> Link:
    """Somebody asks for the link: at once if it is down, whatever was said before."""
    state = State.DOWN if link.state is State.NEEDS_AUTHENTICATION else link.state
    return replace(link, wanted=True, state=state, due_s=now_s if state is State.DOWN else link.due_s)


def hurried(link: Link, now_s: float) -> Link:
    """A program waits for the link: no long pause between attempts, and no attempt for each that comes."""
    return replace(link, due_s=min(link.due_s, max(now_s, link.since_s + HURRY_S)))


def asked(link: Link, now_s: float, *, asking: bool) -> Link:
    """A person is being asked, or has answered: the time to connect begins anew."""
    return (
        replace(link, asking=asking, since_s=now_s) if link.state is State.CONNECTING else replace(link, asking=False)
    )


def refused_since(link: Link, then_s: float) -> bool:
    """Whether an answer that only a person can change was given after `then_s`."""
    return link.state is State.NEEDS_AUTHENTICATION and link.since_s >= then_s


def drop(link: Link, now_s: float) -> tuple[Link, tuple[Do, ...]]:
    """Nobody needs it any more."""
    if link.state in (State.CONNECTING, State.UP, State.SUSPECT):
        return replace(_to(link, State.DEAD, now_s), wanted=False), (Do.HANG_UP,)
    return replace(link, wanted=False), ()


def opened(link: Link, now_s: float) -> Link:
    """The other end has answered through the master's socket."""
    up = replace(_to(link, State.UP, now_s), opened_s=now_s, trip_s=0.0, deviation_s=0.0)
    return replace(up, heard_s=now_s, asked_s=None, excused=False, asking=False, failures=0, why=None)


def heard(link: Link, now_s: float) -> Link:
    """Bytes came from the other end."""
    known = replace(link, heard_s=now_s)
    return _to(known, State.UP, now_s) if link.state is State.SUSPECT else known


def moved(link: Link, now_s: float) -> Link:
    """The network took bytes of others, or brought some, while the ping waits."""
    return replace(heard(link, now_s), excused=True)


def answered(link: Link, now_s: float) -> Link:
    """The ping came back."""
    if link.asked_s is None or link.excused:
        return missed(heard(link, now_s))
    trip_s = now_s - link.asked_s
    first = not link.trip_s
    smooth_s = trip_s if first else 0.875 * link.trip_s + 0.125 * trip_s
    deviation_s = trip_s / 2 if first else 0.75 * link.deviation_s + 0.25 * abs(link.trip_s - trip_s)
    late = not first and trip_s > link.trip_s + RESEND_S
    loss_ratio = link.loss_ratio + (late - link.loss_ratio) / 16
    known = replace(heard(link, now_s), trip_s=smooth_s, deviation_s=deviation_s, loss_ratio=loss_ratio)
    return replace(known, asked_s=None)


def missed(link: Link) -> Link:
    """The ping was given up while other bytes came: another one may be sent."""
    return replace(link, asked_s=None, excused=False)


def doubted(link: Link, now_s: float) -> tuple[Link, tuple[Do, ...]]:
    """Whether it still leads anywhere is asked now; where it is down, it is not waited any longer to connect."""
    if link.state is State.DOWN:
        return replace(link, due_s=now_s), ()
    if link.state in (State.UP, State.SUSPECT) and link.asked_s is None:
        return replace(link, asked_s=now_s), (Do.PING,)
    return link, ()


def uprooted(link: Link, now_s: float) -> tuple[Link, tuple[Do, ...]]:
    """The machine slept, or its routes are others. What failed before says nothing of the network that is there now,
    and that one may come up step by step: the pauses between attempts begin anew.
    """
    is_away = link.state in (State.DOWN, State.CONNECTING)
    return doubted(replace(link, failures=0) if is_away else link, now_s)


def stood_still(link: Link, now_s: float) -> Link:
    """Nobody looked for a while: what has come is still to be read, so a ping that waits gets its time anew."""
    waits = link.asked_s is not None and link.state in (State.UP, State.SUSPECT)
    return replace(link, asked_s=now_s, excused=True) if waits else link


def sought(link: Link, now_s: float) -> tuple[Link, tuple[Do, ...]]:
    """Somebody comes who will wait for it: whether it still leads anywhere is asked now, not at the next silence."""
    return doubted(link, now_s) if now_s - link.heard_s > FRESH_S else (link, ())


def gone(link: Link, now_s: float, why: Why, chance: float) -> Link:
    """The master has ended. chance: from 0 to 1, drawn for this time, so that many links do not come back at once."""
    link = replace(link, asking=False)
    if not why.cause.is_retried:
        return replace(_to(link, State.NEEDS_AUTHENTICATION, now_s), why=why, asked_s=None, wanted=False)
    delay_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**link.failures) * chance
    down = replace(_to(link, State.DOWN, now_s), why=link.why if link.state is State.DEAD and link.why else why)
    return replace(down, asked_s=None, failures=min(link.failures + 1, 32), due_s=now_s + delay_s)


def _to(link: Link, state: State, now_s: float) -> Link:
    return replace(link, state=state, since_s=now_s)
