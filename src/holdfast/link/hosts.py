"""What is set for a host, what was measured of the way there, and what follows for its connection.

One file, `$HOLDFAST_HOME/hosts.json`, by the name a person uses, written whole; pools of hosts lie there too
(`pools.py`). The first that says something counts: the command line, the environment (HOLDFAST_KEEPALIVE and so
on), the run file's `link`, the host's settings, the defaults.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast import fsio, runs, units
from holdfast.errors import HoldfastError, UsageError
from holdfast.units import Keepalive

if TYPE_CHECKING:
    from holdfast.spec.places import Link as RunFileLink

VERSION = 1
_LIMIT_BYTES = 4 << 20

OURS = Keepalive(interval_s=15, count=3)  # a backstop behind our own pings
RELAYED = Keepalive(interval_s=15, count=44)  # outlasts the 10 min for which a relay keeps a session that is cut
SILENCE_S = OURS.interval_s * OURS.count  # after which ssh gives up, whatever the interval
MOST_UNANSWERED = 60
PERSIST_S = 1800.0
COMPRESSED_FROM_S = 0.2  # of round trip: a channel is at 2 MiB a round trip then, which a busy core still compresses
_WORDS = ("auto", "off")
_INSISTING = ("the command line", "the environment", "the host's settings")
_SAYING = (*_INSISTING, "the run file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """How long the network lets a connection be silent: still alive after `alive_s`, gone after `dead_s`."""

    alive_s: float
    dead_s: float | None = None  # None: alive after the longest silence that was tried
    at_s: float = 0.0
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What `holdfast host probe` found. Times in seconds, `at_s` since 1970; None where it could not be told."""

    at_s: float
    trip_s: float
    jitter_s: float = 0.0
    loss_ratio: float = 0.0
    shell_s: float = 0.0
    exchange_s: float = 0.0  # key exchange
    login_s: float = 0.0  # all of a new connection
    sessions: int | None = None  # that the server allows at a time on one connection
    all_sessions: bool = False  # it would have allowed more
    streamlocal: bool | None = None
    idle: Idle | None = None
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What somebody has said; None where nothing was said."""

    keepalive: Keepalive | str | None = None  # or auto, off
    tcp_keepalive: bool | None = None
    identities_only: bool | None = None
    compression: str | None = None  # auto, on, off
    persist_s: float | None = None  # of a connection that nobody uses; 0: no time at all
    max_age_s: float | None = None  # 0: any
    multiplex: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What holds for one connection. None: as the user's ssh configuration has it."""

    keepalive: Keepalive | None = OURS  # None: off
    tcp_keepalive: bool = True
    identities_only: bool | None = None
    compression: bool | None = None
    persist_s: float = PERSIST_S
    max_age_s: float = 0.0
    multiplex: bool = True
    why: Mapping[str, str] = field(default_factory=dict, compare=False)  # who said so, for each that somebody said

    @property
    def options(self) -> dict[str, str]:
        """Of ssh: two connections with the same are the same."""
        keepalive = self.keepalive or Keepalive(interval_s=0, count=OURS.count)
        said = {"IdentitiesOnly": self.identities_only, "Compression": self.compression}
        return {
            "ServerAliveInterval": str(keepalive.interval_s),
            "ServerAliveCountMax": str(keepalive.count),
            "TCPKeepAlive": _yes(self.tcp_keepalive),
            **{name: _yes(value) for name, value in said.items() if value is not None},
        }

    def encoded(self) -> dict[str, Any]:
        """For the agent."""
        return asdict(self)

    @classmethod
    def decoded(cls, told: Mapping[str, Any]) -> Chosen:
        """The way back. Raises TypeError, ValueError."""
        keepalive = told["keepalive"]
        times = {name: time_s(told[name]) for name in ("persist_s", "max_age_s")}
        return cls(**{**told, **times, "keepalive": None if keepalive is None else Keepalive(**keepalive)})


def time_s(told: Any) -> float:
    """Seconds that somebody else has told. Raises TypeError, ValueError."""
    seconds = float(told)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{told!r} is no number of seconds")
    return seconds


def choose(layers: Sequence[tuple[str, Settings]], measured: Measured | None = None) -> Chosen:
    """What holds, from what was said, the most important first, each with the name of who says it. Pure."""
    said: dict[str, Any] = {}
    why: dict[str, str] = {}
    for who, settings in layers:
        for each in fields(settings):
            value = getattr(settings, each.name)
            if value is not None and each.name not in said:
                said[each.name], why[each.name] = value, who
    if said.get("keepalive", "auto") == "auto":
        said["keepalive"], reason = automatic(measured)
        why["keepalive"] = reason
    elif said["keepalive"] == "off":
        said["keepalive"] = None
    compression = said.pop("compression", "auto")
    if compression == "auto":
        said["compression"], why["compression"] = _worth_compressing(measured)
    else:
        said["compression"] = compression == "on"
    return Chosen(**said, why=why)


def differs(wanted: Chosen, there: Chosen) -> bool:
    """Whether a call insists on other options than a connection has. Run files and measurements wait for the next."""
    names = ("keepalive", "tcp_keepalive", "identities_only", "compression")
    return any(wanted.why.get(name) in _INSISTING and getattr(wanted, name) != getattr(there, name) for name in names)


def outlasting(chosen: Chosen) -> Chosen:
    """For a connection that a relay resumes: unless somebody has said another keepalive, ssh waits for the relay."""
    if chosen.why.get("keepalive") in _SAYING:
        return chosen
    return replace(chosen, keepalive=RELAYED, why={**chosen.why, "keepalive": "a relay resumes it"})


def says_something(wanted: Chosen) -> bool:
    """Whether somebody has said anything of it: who says nothing is content with what others have said."""
    return any(who in _SAYING for who in wanted.why.values())


def automatic(measured: Measured | None, *, base: Keepalive = OURS) -> tuple[Keepalive, str]:
    """The keepalive that fits what was measured, and why.

    Where a silence was too long, the interval is a third of the longest one that was not; else, and at most, `base`'s.
    The count makes ssh give up after as long a silence as `base` does, one question later for each 100 ms of round trip
    (and four jitters) and each 5 % of loss: what is late there is not lost.
    """
    if measured is None:
        return base, "not measured yet"
    interval_s, reason = base.interval_s, f"round trip {units.show_duration(measured.trip_s)}"
    if measured.idle is not None and measured.idle.dead_s is not None:
        third_s = max(1, int(measured.idle.alive_s / 3))
        reason += f", a third of {units.show_duration(measured.idle.alive_s)} of silence is {third_s} s"
        interval_s = min(base.interval_s, third_s)
    slow = round((measured.trip_s + 4 * measured.jitter_s) * 1000) // 100 + round(measured.loss_ratio * 100) // 5
    count = math.ceil(base.interval_s * base.count / interval_s) + slow
    return Keepalive(interval_s=interval_s, count=min(count, MOST_UNANSWERED)), reason


def _worth_compressing(measured: Measured | None) -> tuple[bool | None, str]:
    """On, or as the user has it."""
    if measured is None:
        return None, "round trip not measured yet"
    shown = f"round trip {units.show_duration(measured.trip_s)}"
    if measured.trip_s > COMPRESSED_FROM_S:
        return True, f"{shown}, above {units.show_duration(COMPRESSED_FROM_S)}"
    return None, f"{shown}, not above {units.show_duration(COMPRESSED_FROM_S)}"


def for_call(alias: str, said: Settings | None = None, run_file: Settings | None = None) -> Chosen:
    """What holds for a call to `alias`. Raises UsageError for the environment, HoldfastError for the file."""
    host = load().get(alias, Host())
    layers = [
        ("the command line", said or Settings()),
        ("the environment", from_environment(os.environ)),
        ("the run file", run_file or Settings()),
        ("the host's settings", host.settings),
    ]
    return choose(layers, host.measured)


def from_environment(environ: Mapping[str, str]) -> Settings:
    """HOLDFAST_KEEPALIVE, HOLDFAST_COMPRESSION and so on: for a CI script without any file. Raises UsageError."""
    said: dict[str, Any] = {}
    for name, (ours, read_text, _) in TEXTS.items():
        if text := environ.get(_variable(name)):
            try:
                said[ours] = read_text(text)
            except UsageError as error:
                raise UsageError(f"{_variable(name)}: {error}", hint=error.hint) from error
    return Settings(**said)


def insist(keepalive: str) -> None:
    """Let every connection of this program, and of programs that it starts, have it. Raises BadQuantity."""
    read_keepalive(keepalive)
    os.environ[_variable("keepalive")] = keepalive


def _variable(name: str) -> str:
    return f"HOLDFAST_{name.upper()}"


def from_run_file(link: RunFileLink) -> Settings:
    """What a run file's `link` says itself; its defaults say nothing."""
    given = [name for name in TEXTS if name in link.model_fields_set]
    said: dict[str, Any] = {TEXTS[name][0]: getattr(link, name) for name in given}
    never = {name: 0.0 for name in ("persist_s", "max_age_s") if said.get(name, 0.0) in ("no", None)}
    return Settings(**{**said, **{name: value for name, value in never.items() if name in said}})


def show_keepalive(keepalive: Keepalive | None) -> str:
    """`30x5`, or off."""
    return "off" if keepalive is None else units.write_keepalive(keepalive)


def show_idle(idle: Idle) -> str:
    """For people: between which lengths the limit lies."""
    if idle.dead_s is None:
        return f"{units.show_duration(idle.alive_s)} and perhaps more"
    return f"{units.show_duration(idle.alive_s)} and not {units.show_duration(idle.dead_s)}"


# -- text, as on the command line and in the file


def read_keepalive(text: str) -> Keepalive | str:
    """`30x5`, auto or off. Raises BadQuantity."""
    return text if text in _WORDS else units.parse_keepalive(text)


def read_persist(text: str) -> float:
    """`10m`, or no. Raises BadQuantity."""
    return 0.0 if text == "no" else units.parse_duration(text)


def read_age(text: str) -> float:
    """`7h30m`, or any. Raises BadQuantity."""
    return 0.0 if text == "any" else units.parse_duration(text)


def read_switch(text: str) -> bool:
    """on or off. Raises UsageError."""
    if text not in ("on", "off"):
        raise UsageError(f"{text!r} is neither on nor off")
    return text == "on"


def read_compression(text: str) -> str:
    """auto, on or off. Raises UsageError."""
    if text != "auto":
        read_switch(text)
    return text


_Text = tuple[str, Callable[[str], Any], Callable[[Any], str]]  # field, the way in and the way out


def _or(word: str, write: Callable[[float], str]) -> Callable[[float], str]:
    return lambda value: write(value) if value else word


def _switch(value: bool) -> str:
    return "on" if value else "off"


TEXTS: Mapping[str, _Text] = {
    "keepalive": ("keepalive", read_keepalive, lambda v: v if isinstance(v, str) else units.write_keepalive(v)),
    "tcp_keepalive": ("tcp_keepalive", read_switch, _switch),
    "identities_only": ("identities_only", read_switch, _switch),
    "compression": ("compression", read_compression, str),
    "persist": ("persist_s", read_persist, _or("no", units.write_duration)),
    "max_age": ("max_age_s", read_age, _or("any", units.write_duration)),
    "multiplex": ("multiplex", read_switch, _switch),
}


def read(texts: Mapping[str, str]) -> Settings:
    """Settings from text by name. Raises UsageError."""
    unknown = [name for name in texts if name not in TEXTS]
    if unknown:
        raise UsageError(f"there is no setting {unknown[0]!r}", hint=f"one of {', '.join(TEXTS)}")
    return Settings(**{TEXTS[name][0]: TEXTS[name][1](text) for name, text in texts.items()})


def write(settings: Settings) -> dict[str, str]:
    """The way back, of what was said."""
    said = {name: (getattr(settings, ours), out) for name, (ours, _, out) in TEXTS.items()}
    return {name: out(value) for name, (value, out) in said.items() if value is not None}


# -- the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the file holds of one name."""

    settings: Settings = Settings()
    measured: Measured | None = None


def path() -> Path:
    """Where the file lies."""
    return runs.home() / "hosts.json"


@dataclass(slots=True, kw_only=True)
class Known:
    """All of the file."""

    hosts: dict[str, Host] = field(default_factory=dict)
    pools: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name → hosts, as somebody listed them


def load() -> dict[str, Host]:
    """Every host that something is known of. Raises HoldfastError when the file cannot be understood."""
    return known().hosts


def known() -> Known:
    """What the file holds. Raises HoldfastError when it cannot be understood."""
    file = path()
    try:
        told = json.loads(fsio.get(fsio.DISK, file, limit_bytes=_LIMIT_BYTES))
        if told["version"] > VERSION:
            raise HoldfastError(f"{file} was written by a newer holdfast", hint="update holdfast here")
        return Known(
            hosts={name: _host(entry) for name, entry in told["hosts"].items()},
            pools={name: tuple(map(str, members)) for name, members in told.get("pools", {}).items()},
        )
    except FileNotFoundError:
        return Known()
    except (ValueError, KeyError, TypeError, AttributeError, UsageError, OverflowError) as error:
        raise HoldfastError(f"{file} cannot be understood: {error}", hint="mend it, or remove it") from error


def _host(entry: Mapping[str, Any]) -> Host:
    measured = entry.get("measured")
    if measured is not None:
        idle = measured.get("idle")
        evidence = tuple(measured.get("evidence", ()))
        measured = Measured(**{**measured, "idle": None if idle is None else _idle(idle), "evidence": evidence})
    return Host(settings=read(entry.get("settings", {})), measured=measured)


def _idle(entry: Mapping[str, Any]) -> Idle:
    return Idle(**{**entry, "evidence": tuple(entry.get("evidence", ()))})


def with_settings(host: Host, settings: Settings) -> Host:
    """What was said before, but for what is said now."""
    said = {each.name: getattr(settings, each.name) for each in fields(Settings)}
    return replace(host, settings=replace(host.settings, **{n: v for n, v in said.items() if v is not None}))


def update(name: str, settings: Settings | None = None, measured: Measured | None = None) -> Host:
    """Set what is given and keep the rest. Raises HoldfastError, OSError."""
    with changing() as held:
        host = with_settings(held.hosts.get(name, Host()), settings or Settings())
        held.hosts[name] = replace(host, measured=measured or host.measured)
        return held.hosts[name]


def forget(name: str) -> bool:
    """Whether anything was known of it. Raises HoldfastError, OSError."""
    with changing() as held:
        return held.hosts.pop(name, None) is not None


@contextmanager
def changing() -> Iterator[Known]:
    """What is known, for one change at a time; written when the block ends well."""
    runs.home().mkdir(mode=0o700, parents=True, exist_ok=True)
    with fsio.lock_file(path().with_suffix(".lock"), wait_s=math.inf):
        held = known()
        yield held
        entries = {name: _entry(host) for name, host in sorted(held.hosts.items())}
        told = {"version": VERSION, "hosts": entries, **({"pools": held.pools} if held.pools else {})}
        fsio.replace(path(), json.dumps(told, indent=2).encode() + b"\n")


def _entry(host: Host) -> dict[str, Any]:
    measured = {} if host.measured is None else {"measured": asdict(host.measured)}
    return {"settings": write(host.settings), **measured}


def _yes(value: bool) -> str:
    return "yes" if value else "no"
