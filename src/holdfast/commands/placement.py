"""Which host of a pool takes a run. Pure: reads what each said of its devices and its queue (`queue --json`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from holdfast.commands.wording import plural
from holdfast.errors import HostUnreachable
from holdfast.units import Accelerators, parse_accelerators, write_accelerators

ANY = Accelerators(count=0)  # what a run wants that asks for no devices

Answer: TypeAlias = Mapping[str, Any] | str  # what a host said; text: why it cannot be asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What one host has for this run. `devices`: those that it could use, `free`: of these, now, before who waits."""

    host: str
    devices: int
    free: int
    waiting: int
    runs: int
    load_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The host to take, None for none, and in a sentence each why the others are not."""

    host: str | None
    why: str = ""
    others: Mapping[str, str] = field(default_factory=dict)
    able: tuple[str, ...] = ()  # those of the others that could take it too, now or later

    @property
    def taken(self) -> str:
        """The host, where there is one."""
        assert self.host is not None
        return self.host

    def told(self, run: str) -> str:
        """One line for people."""
        rest = "; ".join(f"{host}: {why}" for host, why in self.others.items())
        return f"{run} goes to {self.host}: {self.why}" + (f" ({rest})" if rest else "")


class NowhereToRun(HostUnreachable):
    """No host of the pool can take the run, now or ever."""

    def __init__(self, choice: Choice) -> None:
        reasons = "; ".join(f"{host}: {why}" for host, why in choice.others.items())
        hint = f"holdfast queue --on {next(iter(choice.others))} shows the devices of one, once it can be reached"
        super().__init__(f"no host of the pool can take this run: {reasons}", hint=hint)


def choose(answers: Mapping[str, Answer], wants: Accelerators = ANY) -> Choice:
    """The host for a run that wants these devices.

    Most free ones come first, then the shortest queue, the fewest runs, the least load, and what was named first.
    """
    stands = [standing(host, told, wants) for host, told in answers.items() if not isinstance(told, str)]
    able = [one for one in stands if one.devices >= wants.count]
    others = {host: told if isinstance(told, str) else "" for host, told in answers.items()}
    others |= {one.host: _said(one, wants) if one in able else _lacks(one, wants) for one in stands}
    if not able:
        return Choice(host=None, others=others)
    best = min(able, key=lambda one: (-one.free, one.waiting, one.runs, one.load_ratio))
    rest = tuple(one.host for one in able if one is not best)
    return Choice(host=best.host, why=others.pop(best.host), others=others, able=rest)


def standing(host: str, told: Mapping[str, Any], wants: Accelerators) -> Standing:
    """What an answer to `queue --json` means for a run that wants these devices."""
    devices: Sequence[Mapping[str, Any]] = told["devices"]
    fitting = [device for device in devices if wants.fit(device["name"])]
    awaited = {name for one in told["waiting"] for name in _awaited(parse_accelerators(one["wants"]), devices)}
    free = sum(not device["run"] and not device["busy"] and device["name"] not in awaited for device in fitting)
    return Standing(
        host=host, devices=len(fitting), free=free, waiting=len(told["waiting"]), runs=told["runs"],
        load_ratio=told["load_ratio"],
    )  # fmt: skip


def _awaited(wants: Accelerators, devices: Sequence[Mapping[str, Any]]) -> set[str]:
    """The names of devices that go to one that waits for them, as in `turn`: unless it wants more than there are."""
    fitting = [device["name"] for device in devices if wants.fit(device["name"])]
    return set(fitting) if len(fitting) >= wants.count else set()


def _said(one: Standing, wants: Accelerators) -> str:
    """The facts by which it was judged."""
    facts = [f"{one.free} of {plural(one.devices, 'device')} free"] if one.devices or wants.count else []
    facts += [f"{one.waiting} waiting"] if one.waiting else []
    facts += [plural(one.runs, "run"), f"load {one.load_ratio:.0%}"]
    return ", ".join(facts)


def _lacks(one: Standing, wants: Accelerators) -> str:
    return f"has {plural(one.devices, 'such device')} in all, and the run wants {write_accelerators(wants)}"
