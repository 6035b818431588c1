"""Where a run of a pool is now: where it was last, unless nobody carries it there any more and another host does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from holdfast.commands import remembered, remote
from holdfast.commands.arguments import say
from holdfast.commands.liveness import ENDED
from holdfast.commands.places import Nowhere
from holdfast.commands.remembered import Place

Told = Mapping[str, Any]  # what `status --json` says


def host_of(run: str, place: Place, within_s: float) -> str:
    """The host to ask; where that is another than before, it is said and remembered. Raises Nowhere."""
    if not place.others:
        return place.host
    last, why = _asked(run, (place.host,), within_s)[place.host]
    if last is not None and not is_left(last):
        return place.host
    found = _asked(run, place.others, within_s)
    host = newest(place.host, last, {name: told for name, (told, _) in found.items() if told is not None})
    why = why or f"{place.host} says that it is {last['state'] if last else 'gone'}"
    if host is None:
        reasons = "; ".join([why, *(reason for _, reason in found.values())])
        raise Nowhere(run, place.host, within_s, reasons)
    if host != place.host:
        say(f"{run} is on {host} now: {why}")
        remembered.move(run, place, host)
    return host


def newest(host: str, last: Told | None, others: Mapping[str, Told]) -> str | None:
    """Where a run is that `host` had last, by what is said of it there and elsewhere; None where nobody knows. Pure.

    One that goes on counts before those that have ended: machines date what they say by clocks of their own.
    """
    going_on = {name: told for name, told in others.items() if not is_left(told)}
    known = going_on or ({} if last is not None else others)
    if not known:
        return host if last is not None else None
    return max(known, key=lambda name: (known[name]["state"] not in ENDED, float(known[name]["updated_s"])))


def is_lost(run: str, host: str, within_s: float) -> bool:
    """Whether that host answers, and nobody carries the run there though it has not ended."""
    told, _ = _asked(run, (host,), within_s)[host]
    return told is not None and told["state"] == "lost"


def is_left(told: Told) -> bool:
    """Whether nobody carries it there: the host was lost meanwhile, or another one has gone on. Pure."""
    return told["state"] == "lost" or bool((told.get("mirror") or {}).get("superseded"))


def _asked(run: str, hosts: tuple[str, ...], within_s: float) -> dict[str, tuple[dict[str, Any] | None, str]]:
    """What each host knows of it; None, and why, where it knows nothing or cannot be asked."""
    outcomes = remote.at_each(dict.fromkeys(hosts, ("status", run, "--json")), within_s)
    return {outcome.host: _told(outcome) for outcome in outcomes}


def _told(outcome: remote.VerbOutcome) -> tuple[dict[str, Any] | None, str]:
    if outcome.error is not None:
        return None, str(outcome.error)
    if outcome.status:
        said = outcome.err.decode(errors="replace").partition("\n")[0].removeprefix("error: ")
        return None, f"{outcome.host}: {said}"
    return json.loads(outcome.out), ""
