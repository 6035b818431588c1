"""Hosts of a pool that stand by for a run of another one: asked and told from a laptop."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from holdfast.commands import reach, remembered, remote, whereabouts
from holdfast.commands.arguments import say
from holdfast.commands.reach import Linked
from holdfast.commands.remote import Asked
from holdfast.errors import HoldfastError, HostUnreachable
from holdfast.units import show_duration

DEFAULT_S = 600.0
_PROGRAM = ("node", "standby")


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Which run others are to go on with when its host is silent for how long. `url`: of its mirror."""

    run: str
    host: str
    url: str
    failover_s: float
    accelerators: str
    env: Mapping[str, str]

    def text(self, secrets: Mapping[str, str]) -> bytes:
        """The order that crosses, with the names of secrets alone."""
        told = {name: value for name, value in asdict(self).items() if name not in ("run", "host")}
        return json.dumps({**told, "secret_names": sorted(secrets)}).encode()


def order(
    what: Silence, hosts: Sequence[str], secrets: Mapping[str, str], within_s: float, bring: Callable[[Linked], str]
) -> list[str]:
    """Ask each of `hosts` to stand by, with the code brought there; those that do. What does not work is told."""
    standing = []
    for host in hosts:
        try:
            answer = _ask(what, host, secrets, within_s, bring)
        except HoldfastError as error:
            say(f"{host} does not stand by for {what.run}: {error}", hint=error.hint)
            continue
        if answer["standing"]:
            standing.append(host)
        elif answer["unfenced"]:
            say(
                f"no other host goes on with {what.run} by itself: {what.url} overwrites what it is asked to create "
                "only, so that two could go on at once",
                hint=f"should {what.host} be lost: holdfast resume {what.url} --on {host}",
            )
            return []
        else:
            say(f"{host} does not stand by for {what.run}: {answer['why']}")
    if standing:
        stand = "stands" if len(standing) == 1 else "stand"
        silent = show_duration(what.failover_s)
        say(f"{' and '.join(standing)} {stand} by, should {what.host} be silent for {silent}")
    return standing


def _ask(
    what: Silence, host: str, secrets: Mapping[str, str], within_s: float, bring: Callable[[Linked], str]
) -> dict[str, Any]:
    with reach.linked(host, within_s) as there, tempfile.TemporaryFile() as told:
        folder = bring(there)
        told.write(what.text(secrets))
        told.seek(0)
        outcome = remote.captured(
            there,
            Asked(
                (*_PROGRAM, "begin", what.run), secrets, cwd=folder, patience_s=within_s, stdin=told.fileno(),
                is_attended=False,
            ),
        )  # fmt: skip
    if outcome.status:
        said = outcome.err.decode(errors="replace").partition("\n")[0].removeprefix("error: ")
        raise HoldfastError(said or f"exit code {outcome.status}")
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def stop(run: str, host: str, within_s: float, why: str = "") -> None:
    """Let the hosts that stand by for a run of `host` tell it to stop through its mirror, and stand by no more.

    why: it could not be stopped there; without it, nothing is done unless `host` has lost the run.
    Raises HostUnreachable with what came of it, unless no other host may go on with that run.
    """
    others = next((place.others for place in remembered.places(run) if place.host == host), ())
    if not others or not (why or whereabouts.is_lost(run, host, within_s)):
        return
    outcomes = remote.at_each(dict.fromkeys(others, (*_PROGRAM, "stop", run)), within_s)
    why = why or f"{run} is lost on {host}"
    answers = {outcome.host: _answer(outcome) for outcome in outcomes}
    if any(told for told, _ in answers.values()):
        hint = f"nobody else goes on with it; should {host} still compute, it saves and stops once it sees its mirror"
        raise HostUnreachable(f"{why}; it was told to stop through its mirror", hint=hint)
    if reasons := "; ".join(f"{name}: {reason}" for name, (_, reason) in answers.items() if reason):
        raise HostUnreachable(f"{why}; nobody could tell it to stop: {reasons}", hint="try again later")


def _answer(outcome: remote.VerbOutcome) -> tuple[bool, str]:
    """Whether a host has told a run to stop, or else why not; neither where it does not stand by."""
    if outcome.error is not None:
        return False, str(outcome.error)
    if outcome.status:
        return False, outcome.err.decode(errors="replace").partition("\n")[0].removeprefix("error: ")
    told = json.loads(outcome.out)
    return told["told"], told["why"]


def end(host: str, names: Sequence[str], within_s: float) -> None:
    """Nobody of the pool goes on with these runs of `host` any more."""
    for run in names:
        for place in remembered.places(run):
            if place.host == host and place.others:
                _end(run, place.others, within_s)


def _end(run: str, hosts: Sequence[str], within_s: float) -> None:
    for outcome in remote.at_each(dict.fromkeys(hosts, (*_PROGRAM, "end", run)), within_s):
        if outcome.error is not None or outcome.status:
            why = outcome.error or outcome.err.decode(errors="replace").strip()
            say(
                f"what stands by for {run} on {outcome.host} could not be ended: {why}",
                hint=f"it does nothing while {run} is at rest, and ends a day later",
            )
