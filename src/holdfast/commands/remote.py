"""Verbs on other machines: the same line, called there, its bytes brought here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any

import click

from holdfast import crowd
from holdfast.commands import afar, reach, remembered
from holdfast.commands.arguments import going_on, print_of, say
from holdfast.errors import HoldfastError, HostUnreachable

if TYPE_CHECKING:
    from holdfast.commands.places import Journey, Line
    from holdfast.commands.reach import Linked, Reach
    from holdfast.commands.reaching import Together

_AT_ONCE = 32  # machines
_LOOKS = ("TERM", "COLORTERM", "NO_COLOR", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "LC_NUMERIC")


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of a verb. `patience_s`: how long the link may be away meanwhile; None: for ever."""

    words: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    patience_s: float | None = None
    stdin: int | None = None
    stdout: int = 1
    stderr: int = 2
    is_attended: bool = True  # somebody presses Ctrl-C, and draws the terminal wider


@dataclass(frozen=True, slots=True)
class VerbOutcome:
    """What one machine of several answered; `error` where it did not."""

    host: str
    status: int
    out: bytes = b""
    err: bytes = b""
    error: HoldfastError | None = None


def carry_out(lines: Sequence[Line], path: tuple[str, ...], found: Journey, together: Together | None) -> int:
    """The verb at `path` on machines; its exit status, of several the highest, and 10 where one cannot be reached."""
    if len(lines) == 1:
        return _straight(lines[0], path, found)
    wants_json = any("--json" in line.words for line in lines)
    more = ("--json",) if together is not None and not wants_json else ()
    with going_on("what has begun on the machines goes on there"):
        outcomes = at_each({line.host: (*path, *line.words, *more) for line in lines}, found.within_s)
    if together is not None:
        _as_one(outcomes, together, wants_json)
    else:
        for outcome in outcomes:
            click.echo(json.dumps(_facts(outcome))) if wants_json else _show(outcome)
    return max(outcome.status if outcome.error is None else HostUnreachable.exit_code for outcome in outcomes)


def ride(line: Line, path: tuple[str, ...], found: Journey) -> int:
    """The verb at a terminal of its own there; its exit status."""
    from holdfast.commands import ssh
    from holdfast.link.target import users_config

    with _linked(line, found) as there:
        return ssh.ride(there.up, users_config(), shlex.join(there.starting(*path, *line.words)))


def call(there: Reach, asked: Asked) -> int:
    """Carry it out; the verb's exit status. Raises HostUnreachable, with the state of the link."""
    sys.stdout.flush()
    return crowd.run(_call(there, asked))


async def _call(there: Reach, asked: Asked) -> int:
    from holdfast.commands.vigil import Vigil
    from holdfast.service.client import CallLost, Calls, NoService
    from holdfast.service.tasks import stop

    vigil = Vigil(there, asked.patience_s)
    calls = Calls(there.connect, vigil.cut)
    calling = asyncio.create_task(calls.call(
        asked.words, env=asked.env, cwd=asked.cwd, stdin=asked.stdin, stdout=asked.stdout, stderr=asked.stderr,
        columns=_columns(asked.stdout), signals=asked.is_attended,
    ))  # fmt: skip
    looking = asyncio.create_task(vigil.look())
    try:
        await asyncio.wait({calling, looking}, return_when=asyncio.FIRST_COMPLETED)
        if calling.done():
            return calling.result()
        looking.result()
        raise HostUnreachable(vigil.why)
    except NoService:
        raise
    except CallLost as error:
        raise HostUnreachable(
            str(error), hint=f"holdfast ps --all --on {there.host} tells before you do it again"
        ) from error
    except HostUnreachable as error:
        raise vigil.gave_up(error) from error
    finally:
        await stop(calling, looking)
        await calls.close()
        await there.hang_up()


def captured(there: Reach, asked: Asked) -> VerbOutcome:
    """Carry it out; what the verb said is kept."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        status = call(there, replace(asked, stdout=out.fileno(), stderr=err.fileno()))
        return VerbOutcome(there.host, status, _read(out), _read(err))


def looks(host: str) -> dict[str, str]:
    """What of our environment decides how things look, and what we call the machine."""
    return {name: os.environ[name] for name in _LOOKS if name in os.environ} | {afar.CALLED: host}


def hidden(words: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Words of which none says a secret, and the secrets: `--secret K=V` becomes `--secret K`, with V beside it."""
    shown: list[str] = []
    secrets: dict[str, str] = {}
    end = words.index("--") if "--" in words else len(words)
    for at, word in enumerate(words):
        option = "" if 0 < at < end and words[at - 1] == "--secret" else "--secret="
        if at < end and word.startswith(option):
            name, equals, value = word.removeprefix(option).partition("=")
            if equals or name in os.environ:
                secrets[name] = value if equals else os.environ[name]
            shown.append(option + name)
        else:
            shown.append(word)
    return tuple(shown), secrets


def _straight(line: Line, path: tuple[str, ...], found: Journey) -> int:
    """One machine, its bytes straight to ours."""
    words, secrets = hidden((*path, *line.words))
    with _linked(line, found) as there:
        return call(
            there,
            Asked(
                words,
                {**looks(there.host), **secrets},
                patience_s=None if found.lasts else found.within_s,
                stdin=0 if _is_asked() else None,
            ),
        )


def at_each(lines: Mapping[str, Sequence[str]], within_s: float) -> list[VerbOutcome]:
    """What each of several machines says to its words, all at once; in the order of `lines`."""
    return list(crowd.each(lambda host: _kept(host, lines[host], within_s), lines, _AT_ONCE))


def _kept(host: str, words: Sequence[str], within_s: float) -> VerbOutcome:
    """What one machine of several said, told later; nobody can answer a question of the verb."""
    shown, secrets = hidden(words)
    asked = Asked(shown, {**looks(host), **secrets}, patience_s=within_s, is_attended=False)
    try:
        with reach.linked(host, within_s) as there:
            return captured(there, asked)
    except HoldfastError as error:
        return VerbOutcome(host, error.exit_code, error=error)


@contextlib.contextmanager
def _linked(line: Line, found: Journey) -> Iterator[Linked]:
    """The machine, as the run file of its run wants to reach it. Raises HostUnreachable."""
    from holdfast.link import hosts

    known = remembered.at(line.host, line.runs)
    with reach.linked(line.host, found.within_s, hosts.read(known.link) if known else None) as there:
        if known and found.leads:
            there.lead(known.ports)
        yield there


def _as_one(outcomes: Sequence[VerbOutcome], together: Together, wants_json: bool) -> None:
    answers = {}
    for outcome in outcomes:
        has_answered = outcome.error is None and not outcome.status
        if has_answered:
            answers[outcome.host] = json.loads(outcome.out)
        _show(replace(outcome, out=b"") if has_answered else outcome)
    together(answers, wants_json)


def _show(outcome: VerbOutcome) -> None:
    print_of(outcome.host, outcome.out, outcome.err)
    if outcome.error is not None:
        said = str(outcome.error)
        say(said if said.startswith(outcome.host) else f"{outcome.host}: {said}", hint=outcome.error.hint)


def _facts(outcome: VerbOutcome) -> dict[str, Any]:
    said = outcome.out.decode(errors="replace")
    try:
        answer = json.loads(said)
    except ValueError:
        answer = said
    error = outcome.err.decode(errors="replace") if outcome.error is None else str(outcome.error)
    return {"host": outcome.host, "status": outcome.status, "answer": answer, "error": error.strip()}


def _is_asked() -> bool:
    """Whether a person can answer here. A file or a pipe is left to the shell: a loop may be reading it."""
    return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()  # who reads in the background is stopped


def _columns(descriptor: int) -> int | None:
    """Of the terminal that shows what is written there; None where none does."""
    return (os.get_terminal_size(descriptor).columns or None) if os.isatty(descriptor) else None


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
