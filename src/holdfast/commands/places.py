"""Which machines a command line speaks of: `HOST:RUN` wherever a RUN is taken, `--on HOST` elsewhere or for many.

What a machine is asked to do is the same line without its name. What is read is the index of runs that were started
from here, and for patterns the names in the configuration of ssh. Nobody is asked, but for a run of a pool: it may have
gone to another host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from holdfast import runs
from holdfast.commands import remembered
from holdfast.commands.arguments import KEEPALIVE, RunArgument
from holdfast.commands.table import Away
from holdfast.errors import HostUnreachable, UsageError

ON, WITHIN = "--on", "--timeout"
WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Line:
    """What one machine is to do. `host` is empty for this one; `runs`: those of `words` that name runs."""

    host: str
    words: tuple[str, ...]
    runs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Journey:
    """What is carried out where, what is here last. within_s: how long a machine may not answer.

    `lasts`: the verb goes on for as long as somebody looks, and outwaits a link that breaks. `leads`: meanwhile the
    run's `ports` of this machine lead there.
    """

    lines: tuple[Line, ...]
    within_s: float = WITHIN_S
    lasts: bool = False
    leads: bool = False


@dataclass(frozen=True, slots=True)
class _Named:
    """A RUN of the command line: the word at `at`."""

    at: int
    host: str
    run: str


class Nowhere(HostUnreachable):
    """No host of the pool says that it has the run. `host`: where it was last."""

    def __init__(self, run: str, host: str, within_s: float, why: str) -> None:
        super().__init__(f"{run} cannot be found: {why}", hint="it goes on wherever it is; ask again later")
        self.run, self.host, self.within_s = run, host, within_s


class _Word(str):
    """A word that knows its place on the command line, also after click has sorted it."""

    at: int


def journey(verb: click.Command, away: Away, context: click.Context, words: Sequence[str]) -> Journey | None:
    """Where `words` of `verb` are carried out; None: all of it here.

    Raises click.UsageError for words that the verb does not take, UsageError for machines that cannot be meant.
    """
    patterns, left = _taken(words, ON)
    limits, left = _taken(left, WITHIN) if _is_ours(verb, WITHIN) else ([], left)
    keepalives, left = _taken(left, KEEPALIVE)
    values, _, _ = verb.make_parser(context).parse_args([_marked(word, at) for at, word in enumerate(left)])
    helping = verb.get_help_option(context)
    if helping is not None and values.get(helping.name or ""):
        return None
    within_s = _seconds(limits)
    if keepalives:
        from holdfast.link import hosts

        hosts.insist(keepalives[-1])
    named = list(_named(verb, values, None if patterns else within_s))
    lines = _at_each(patterns, named, left) if patterns else _by_machine(verb, named, left)
    if not lines:
        return None
    lasts = (away.lasts == "*" or bool(values.get(away.lasts))) and not values.get(away.unless)
    return Journey(lines, within_s, lasts, leads=lasts and away.leads)


def split(text: str) -> tuple[str, str]:
    """HOST and RUN of `HOST:RUN`, where both may lack; a path and a URL have no HOST. Pure."""
    host, colon, run = text.partition(":")
    if colon and host and "/" not in host and not run.startswith("//"):
        return host, run
    return "", text


def _named(verb: click.Command, values: Mapping[str, Any], within_s: float | None) -> Iterator[_Named]:
    """Every RUN; with `within_s` also where those are that name no machine."""
    for param in verb.params:
        if isinstance(param, RunArgument):
            value = values.get(param.name or "")
            for word in value if isinstance(value, (tuple, list)) else [value]:
                if isinstance(word, _Word):
                    yield _Named(word.at, *placed(word, within_s))


def placed(word: str, within_s: float | None = WITHIN_S) -> tuple[str, str]:
    """HOST, "" for here, and RUN there; without `within_s` a name alone is here.

    Raises UsageError for a name that several machines have, HostUnreachable.
    """
    host, run = split(word)
    return (host, run) if host or within_s is None else (_started_at(run, within_s), run)


def _started_at(run: str, within_s: float) -> str:
    name = run.partition("@")[0]
    if "/" in name or (runs.home() / "runs" / name / "plan.json").is_file():
        return ""
    known = remembered.places(name)
    hosts = [place.host for place in known]
    if len(hosts) > 1:
        raise UsageError(
            f"runs named {name!r} were started on {' and '.join(hosts)}", hint=f"name one: {hosts[-1]}:{name}"
        )
    if not known:
        return ""
    if not known[0].others:
        return hosts[0]
    from holdfast.commands import whereabouts

    return whereabouts.host_of(name, known[0], within_s)


def _at_each(patterns: Sequence[str], named: Sequence[_Named], words: Sequence[str]) -> tuple[Line, ...]:
    """The whole line on every machine that `--on` means."""
    from holdfast.link import names, target

    for one in named:
        if split(words[one.at])[0]:
            raise UsageError(f"{words[one.at]} says where it is, and so does --on", hint="say it once")
    runs_ = tuple(one.run for one in named)
    return tuple(Line(host, tuple(words), runs_) for host in names.chosen(patterns, target.users_config()))


def _by_machine(verb: click.Command, named: Sequence[_Named], words: Sequence[str]) -> tuple[Line, ...]:
    """To each machine the line with its own runs alone; what is here comes last."""
    hosts = list(dict.fromkeys(one.host for one in sorted(named, key=lambda one: not one.host)))
    if hosts in ([], [""]):
        return ()
    if len(hosts) > 1 and not any(isinstance(param, RunArgument) and param.nargs == -1 for param in verb.params):
        there = [f"{words[one.at]} on {one.host or 'this machine'}" for one in named]
        raise UsageError(f"these are on different machines: {', '.join(there)}", hint="bring one to the other first")
    return tuple(
        Line(host, tuple(_words_for(host, named, words)), tuple(one.run for one in named if one.host == host))
        for host in hosts
    )


def _words_for(host: str, named: Sequence[_Named], words: Sequence[str]) -> Iterator[str]:
    runs_ = {one.at: one for one in named}
    for at, word in enumerate(words):
        one = runs_.get(at)
        if one is None:
            yield word
        elif one.host == host and one.run:  # `HOST:` alone means the machine, and no run of it in particular
            yield one.run


def _taken(words: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """The values of `option`, and the words without it. What follows -- is not looked at."""
    end = words.index("--") if "--" in words else len(words)
    values, left, at = [], [], 0
    while at < end:
        if words[at] == option and at + 1 < end:
            values.append(words[at + 1])
            at += 1
        elif words[at].startswith(f"{option}="):
            values.append(words[at].partition("=")[2])
        else:
            left.append(words[at])
        at += 1
    return values, [*left, *words[end:]]


def _is_ours(verb: click.Command, option: str) -> bool:
    return any(option in param.opts and not param.expose_value for param in verb.params)


def _seconds(limits: Sequence[str]) -> float:
    if not limits:
        return WITHIN_S
    from holdfast.units import parse_duration

    return parse_duration(limits[-1])


def _marked(word: str, at: int) -> _Word:
    marked = _Word(word)
    marked.at = at
    return marked
