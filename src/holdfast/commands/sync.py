"""`holdfast sync`: a folder to a host, or back, over the connection that is there already."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import duration_option, going_on, json_option, keepalive_option, say
from holdfast.commands.progress import bar
from holdfast.commands.wording import plural
from holdfast.errors import HostUnreachable, UsageError
from holdfast.units import show_duration, show_size

if TYPE_CHECKING:
    from holdfast.link.client import Links, Up
    from holdfast.sync.frames import Frames
    from holdfast.sync.sending import Outcome, Progress

_MOST_SHOWN = 20
_MOST_CUTS = 5  # in a row, without a byte in between
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0  # before the next try to reach a host


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One call."""

    host: str
    folder: str  # there
    here: Path
    is_push: bool
    flags: tuple[str, ...]  # of the end that gets the files
    watch: bool
    timeout_s: float


@click.command("sync")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DEST")
@click.option("--delete", is_flag=True, help="Remove at DEST what an earlier sync brought and SRC has no more.")
@click.option("--overwrite", is_flag=True, help="Replace files that were made or changed at DEST.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--watch", is_flag=True, help="Stay, and bring each change.")
@duration_option("--timeout", default="30s", show_default=True, help="For the connection.")
@keepalive_option
@json_option
def command(
    source: str,
    target: str,
    delete: bool,
    overwrite: bool,
    dry_run: bool,
    watch: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Bring what the folder SRC holds to the folder DEST. One of them is HOST:FOLDER, seen from the home there.

    .gitignore and .holdfastignore in SRC are honoured. What was made or changed at DEST is kept, and told; exits with 1
    then.
    """
    if watch and dry_run:
        raise UsageError("--watch and --dry-run together make no sense")
    given = {"--delete": delete, "--overwrite": overwrite, "--dry-run": dry_run}
    flags = tuple(flag for flag, is_given in given.items() if is_given)
    job = _job(source, target, flags=flags, watch=watch, timeout_s=timeout)
    show = _print_facts if as_json else _show
    with going_on("what has arrived stays, and the next sync goes on from there"):
        if watch:
            return _watch(job, show)
        with bar(f"{source} → {target}") as progress:
            outcomes = list(_outcomes(job, progress))
        from holdfast.sync.sending import Outcome  # while the other end began

        return show(job, functools.reduce(lambda earlier, later: later.after(earlier), outcomes, Outcome()))


def _watch(job: _Job, show: Callable[[_Job, Outcome], int]) -> int:
    """For ever; each round that did something is told."""
    for outcome in _outcomes(job, lambda done, total: None):
        if outcome.lines:
            show(job, outcome)
    return 0


def _job(source: str, target: str, **options: Any) -> _Job:
    from_host, from_folder = _split(source)
    to_host, to_folder = _split(target)
    if bool(from_host) == bool(to_host):
        raise UsageError(
            f"{source} and {target} are both {'elsewhere' if to_host else 'here'}",
            hint="name one of them HOST:FOLDER",
        )
    if to_host:
        return _Job(host=to_host, folder=to_folder, here=Path(from_folder), is_push=True, **options)
    return _Job(host=from_host, folder=from_folder, here=Path(to_folder), is_push=False, **options)


def _split(place: str) -> tuple[str, str]:
    """Host and folder; host "" for one that is here. As scp has it: a colon before any slash."""
    host, colon, folder = place.partition(":")
    if not colon or "/" in host:
        return "", place
    if not host or not folder:
        raise UsageError(f"{place!r} names no folder of a host", hint="write it like gpu-a:project")
    return host, folder


def _outcomes(job: _Job, progress: Progress) -> Iterator[Outcome]:
    """Of each round. A connection that is cut is made again, and the files go on at the byte where it was."""
    from holdfast.bundle.probing import Unfit
    from holdfast.commands.conversation import NotStarted, conversation
    from holdfast.commands.reach import reached
    from holdfast.link.client import Links, NeedsAuthentication, telling

    cuts, again = 0, False

    def moved(done: int, total: int) -> None:
        nonlocal cuts
        cuts = 0
        progress(done, total)

    while True:
        with Links() as links:
            up = _reached(links, job)
            try:
                with telling(up):
                    there = reached(links, up, again=again, within_s=job.timeout_s, progress=progress)
                    with conversation(there.up, there.starting("node", *_end(job))) as frames:
                        for outcome in _rounds(job, frames, moved):
                            again = False
                            yield outcome
                return
            except (NeedsAuthentication, Unfit):
                raise
            except NotStarted:
                if again:
                    raise
                again = True  # what was remembered of the node is wrong
                continue
            except HostUnreachable as error:
                cuts += 1
                if cuts > _MOST_CUTS:
                    raise
                say(f"{error}; trying again")
        time.sleep(0.1 * 2**cuts)


def _reached(links: Links, job: _Job) -> Up:
    """A connection; who watches waits for one."""
    from holdfast.link import target
    from holdfast.link.client import NeedsAuthentication

    pause_s = _PAUSE_S
    while True:
        try:
            return links.up(job.host, config=target.users_config(), within_s=job.timeout_s)
        except NeedsAuthentication:
            raise
        except HostUnreachable as error:
            if not job.watch:
                raise
            if pause_s == _PAUSE_S:
                say(f"{error}; waiting")
        time.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)


def _rounds(job: _Job, frames: Frames, progress: Progress) -> Iterator[Outcome]:
    from holdfast.sync import ends
    from holdfast.sync.decide import Options

    if job.is_push:
        yield from ends.send(job.here, frames, watching=job.watch, progress=progress)
        return
    options = Options(
        delete="--delete" in job.flags, overwrite="--overwrite" in job.flags, dry_run="--dry-run" in job.flags
    )
    yield from ends.receive(job.here, frames, options, progress)


def _end(job: _Job) -> list[str]:
    """The other end of the sync, as `holdfast node` takes it."""
    if job.is_push:
        return ["receive", job.folder, *job.flags]
    return ["send", job.folder, *(["--watch"] if job.watch else [])]


def _show(job: _Job, outcome: Outcome) -> int:
    """For people; returns the exit status."""
    from holdfast.sync.frames import printable

    would = "would be " if "--dry-run" in job.flags else ""
    brought, deleted = outcome.paths("brought"), outcome.paths("deleted")
    size = f" ({show_size(outcome.moved_bytes)})" if brought else ""
    removed = f", {len(deleted)} {would}deleted" if deleted else ""
    click.echo(f"{plural(len(brought), 'file')} {would}brought{size}{removed} in {show_duration(outcome.seconds)}")
    if would:
        for what, paths in (("bring", brought), ("make", outcome.paths("made")), ("delete", deleted)):
            click.echo("".join(f"{what} {printable(path)}\n" for path in paths), nl=False)
    told = [f"{line.what} {printable(line.path)}: {line.why}" for line in outcome.lines if line.why]
    for sentence in told[:_MOST_SHOWN]:
        say(sentence)
    if len(told) > _MOST_SHOWN:
        say(f"and {len(told) - _MOST_SHOWN} more: --json has them all")
    if outcome.paths("kept") and "--overwrite" not in job.flags:
        say("what was made or changed at DEST was kept", hint="--overwrite replaces files and links there")
    return _status(outcome)


def _print_facts(job: _Job, outcome: Outcome) -> int:
    """For programs, one line a round; returns the exit status."""
    facts = {
        "host": job.host,
        "dry_run": "--dry-run" in job.flags,
        **{what: outcome.paths(what) for what in ("brought", "made", "deleted")},
        "told": [{"what": line.what, "path": line.path, "why": line.why} for line in outcome.lines if line.why],
        "moved_bytes": outcome.moved_bytes,
        "seconds": round(outcome.seconds, 3),
    }
    click.echo(json.dumps(facts))
    return _status(outcome)


def _status(outcome: Outcome) -> int:
    """1 when the folders are not the same afterwards though they should be."""
    return int(any(outcome.paths(what) for what in ("kept", "changing")))
