"""What verbs share on their command lines: the RUN argument, `--json`, durations, the clock, and talk on stderr."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from holdfast import runs
from holdfast.commands import afar
from holdfast.errors import RunNotFound, UsageError, plain
from holdfast.runs import RunDir

Callback = TypeVar("Callback", bound=Callable[..., Any])
KEEPALIVE = "--keepalive"


class RunArgument(click.Argument):
    """Where a RUN is taken: `HOST:RUN` means one of another machine (`places.journey`), and the shell completes it."""

    def __init__(self, *names: Any, **options: Any) -> None:
        super().__init__(*names, **{"shell_complete": complete_runs, **options})


class KeepaliveOption(click.Option):
    """`--keepalive 30x5`, auto or off: for every connection of this call. Raises BadQuantity."""

    def __init__(self, *names: Any, **options: Any) -> None:
        told = "Of the connection: a question every 30 s, dead after 5 unanswered; or auto, off."
        super().__init__(
            *names, **{"metavar": "30x5", "expose_value": False, "callback": _insist, "help": told, **options}
        )


def _insist(_context: click.Context, _parameter: click.Parameter, text: str | None) -> None:
    if text is not None:
        from holdfast.link import hosts

        hosts.insist(text)


def complete_runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of the runs on this machine and of those started from it, and machines, for the shell."""
    from holdfast.commands import remembered
    from holdfast.link import names, target

    known = dict.fromkeys([*(run.id for run in runs.every()), *remembered.every()])
    host, colon, _ = incomplete.partition(":")
    there = [
        f"{host}:{run}" for run in remembered.every() if any(place.host == host for place in remembered.places(run))
    ]
    found = there if colon else [*known, *(f"{name}:" for name in names.known(target.users_config()))]
    return [CompletionItem(word) for word in found if word.startswith(incomplete)]


def find(name: str) -> RunDir:
    """The run of this machine. Raises RunNotFound, with the nearest name; UsageError for the name of a machine."""
    from holdfast.commands import remembered
    from holdfast.link import names, target

    try:
        return runs.find(name)
    except RunNotFound as error:
        if name in names.known(target.users_config()):
            raise UsageError(
                f"{name} is a machine, and no run", hint=f"name the run: {name}:RUN; holdfast ps --on {name} has them"
            ) from None
        known = {run: places[-1].host for run in remembered.every() if (places := remembered.places(run))}
        near = difflib.get_close_matches(name, known, n=1)
        if near and not error.is_explained:
            raise RunNotFound(name, near=f"{known[near[0]]}:{near[0]}") from None
        raise


def run_argument(callback: Callback) -> Callback:
    """A RUN that must be given, by its id or its folder; becomes a RunDir. Raises RunNotFound with the nearest name."""
    return click.argument("run", type=find, cls=RunArgument)(callback)


def optional_run(callback: Callback) -> Callback:
    """A RUN that may be left out: None then, for `chosen`."""
    return click.argument("run", type=find, cls=RunArgument, required=False)(callback)


def duration_option(*names: str, **options: Any) -> Callable[[Callback], Callback]:
    """An option such as `--timeout 10m`; becomes seconds. Raises BadQuantity."""

    def seconds(text: str) -> float:
        from holdfast.units import parse_duration

        return parse_duration(text)

    return click.option(*names, type=seconds, metavar="DURATION", **options)


def keepalive_option(callback: Callback) -> Callback:
    """`--keepalive` of a verb that reaches a host by itself; the callback is not told."""
    return click.option(KEEPALIVE, cls=KeepaliveOption)(callback)


def json_option(callback: Callback) -> Callback:
    """`--json`: the same facts for programs."""
    return click.option("--json", "as_json", is_flag=True, help="The same facts as JSON.")(callback)


def chosen(run: RunDir | None, *, live_only: bool = False) -> RunDir:
    """The run meant: the one given, else the only live one, else the newest. Raises UsageError."""
    if run is not None:
        return run
    from holdfast.commands.liveness import live

    every = list(runs.every())
    living = [candidate for candidate in every if live(candidate)]
    if len(living) > 1:
        names = ", ".join(candidate.id for candidate in living)
        raise UsageError(f"{len(living)} runs are live: {names}", hint="name the one you mean")
    if living:
        return living[0]
    if not every:
        raise UsageError("there is no run yet", hint="holdfast run -- python train.py")
    if live_only:
        raise UsageError("no run is live", hint="holdfast ps --all lists every run")
    return max(every, key=lambda candidate: candidate.plan.stat().st_mtime)


def clock_of(context: click.Context) -> Callable[[], float]:
    """The clock the program was called with, in unix seconds."""
    return context.obj if callable(context.obj) else time.time


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2))


def print_of(host: str, out: bytes, err: bytes) -> None:
    """What a command wrote on another machine, each line after the machine's name."""
    for stream, data in ((sys.stdout, out), (sys.stderr, err)):
        for line in data.decode(errors="replace").splitlines():
            click.echo(f"{host}: {line}", file=stream)


def say(sentence: str, *, hint: str = "") -> None:
    """Talk: one sentence on stderr, perhaps with a hint."""
    click.echo(plain(sentence), err=True)
    if hint:
        click.echo(plain(f"hint: {afar.typed(hint)}"), err=True)


@contextmanager
def going_on(sentence: str, *, hint: str = "") -> Iterator[None]:
    """Ctrl-C inside ends the command, with exit code 130, and says what goes on without it."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"\n{sentence}", hint=hint)  # below the ^C that the terminal shows
        raise click.Abort from None


def print_table(lines: Sequence[str]) -> None:
    """Lines on stdout. At a terminal each ends at its edge, since lines that wrap cannot be read as a table."""
    click.echo("\n".join(fitted(lines)))


def fitted(lines: Sequence[str]) -> list[str]:
    """Lines no longer than the terminal is wide; all of them elsewhere."""
    width = terminal_width()
    lines = [plain(line) for line in lines]  # a table may have cells of other machines
    return [line if width is None or len(line) <= width else f"{line[: width - 1]}…" for line in lines]


def terminal_width() -> int | None:
    """How many columns a person sees; None where nobody looks."""
    return shutil.get_terminal_size().columns if at_terminal() else None


def takes_colours() -> bool:
    """Whether stdout is a terminal that shows colours to somebody who wants them (https://no-color.org)."""
    return at_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def at_terminal() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()
