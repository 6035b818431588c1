"""`holdfast logs`: the run's output, all attempts in one file, by byte offsets that never move.

Where an attempt begins is exact (the journal knows the offset). A moment in time (`--since`) is looked up in the
journal's attempts and then in the supervisor's heartbeat lines, so it is as fine as `logs.heartbeat` is.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import click

from holdfast.commands.arguments import chosen, clock_of, going_on, optional_run, say
from holdfast.commands.liveness import polls
from holdfast.errors import UsageError
from holdfast.events import AttemptStarted
from holdfast.output import Cursor, Output, Piece
from holdfast.runs import RunDir
from holdfast.units import BadQuantity, parse_duration, show_size

# A heartbeat line of the supervisor: "[holdfast 2026-01-31 14:05:09] step 1200 …", local time.
HEARTBEAT = re.compile(rb"^\[holdfast (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\]", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the log, in bytes; `end` None: as far as it goes."""

    start: int
    end: int | None


@click.command("logs")
@optional_run
@click.option("--follow", "-f", is_flag=True, help="As it comes, until the run is over.")
@click.option("--attempt", type=int, help="Only that attempt.")
@click.option("--since", help="10m, or 2026-01-31 14:00. As fine as attempts and heartbeat lines are.")
@click.option("--tail", type=click.IntRange(min=0), help="Only the last lines.")
@click.option("--from-byte", type=click.IntRange(min=0), help="From that offset on, to continue where you stopped.")
@click.pass_context
def command(
    context: click.Context,
    run: RunDir | None,
    follow: bool,
    attempt: int | None,
    since: str | None,
    tail: int | None,
    from_byte: int | None,
) -> None:
    """The output of RUN. Without RUN: of the only live one, else the newest."""
    if sum(option is not None for option in (attempt, since, from_byte)) > 1:
        raise UsageError("--attempt, --since and --from-byte exclude each other", hint="give one of them")
    meant = chosen(run)
    with Output(meant.output) as output:
        span = Span(from_byte or 0, None)
        size = output.size()
        if span.start > size and not follow:
            raise UsageError(f"the output of {meant.id} has {size} bytes: nothing is at {span.start}")
        if attempt is not None:
            span = attempt_span(_attempts(meant), attempt)
        elif since is not None:
            span = since_span(_attempts(meant), output, moment(since, clock_of(context)()))
        if tail is not None:
            span = Span(output.last_lines(tail, span.start, span.end), span.end)
        if follow and span.end is None:
            _follow(meant, output, span.start)
        else:
            write(output.pieces(span.start, span.end))


def write(pieces: Iterable[Piece]) -> None:
    """Bytes to stdout, holes as a sentence on stderr."""
    raw = sys.stdout.buffer
    for piece in pieces:
        if piece.data is None:
            raw.flush()
            say(f"{show_size(piece.length)} from byte {piece.offset} on were rotated away")
        else:
            raw.write(piece.data)
    raw.flush()


def attempt_span(attempts: list[AttemptStarted], number: int) -> Span:
    """The bytes of one attempt. Raises UsageError when there was no such attempt."""
    for at, started in enumerate(attempts):
        if started.attempt == number:
            return Span(started.log_offset, attempts[at + 1].log_offset if at + 1 < len(attempts) else None)
    known = f"{attempts[0].attempt} to {attempts[-1].attempt}" if attempts else "none"
    raise UsageError(f"there is no attempt {number}", hint=f"attempts so far: {known}")


def since_span(attempts: list[AttemptStarted], output: Output, since_s: float) -> Span:
    """From the last attempt start or heartbeat line at or before `since_s`."""
    start = max((started.log_offset for started in attempts if started.t <= since_s), default=0)
    following = [started.log_offset for started in attempts if started.log_offset > start]
    end = min(following, default=None)
    for piece in output.pieces(start, end):
        for found in HEARTBEAT.finditer(piece.data or b""):
            if datetime.fromisoformat(found[1].decode()).timestamp() > since_s:
                return Span(start, None)
            start = piece.offset + found.start()
    return Span(start, None)


def moment(text: str, now_s: float) -> float:
    """Unix seconds of "10m" (ago) or of a local date and time. Raises UsageError."""
    with contextlib.suppress(BadQuantity):
        return now_s - parse_duration(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageError(f"--since {text!r} is no time", hint="write it like 10m or 2026-01-31T14:00") from None


def _attempts(run: RunDir) -> list[AttemptStarted]:
    from holdfast.journal import read

    return [event for event in read(run.journal)[0] if isinstance(event, AttemptStarted)]


def _follow(run: RunDir, output: Output, start: int) -> None:
    cursor = Cursor(output, start)
    try:
        with going_on(f"{run.id} goes on"):
            for _ in polls(run):
                write(cursor.new())
    finally:
        say(f"{run.id}: shown up to byte {cursor.at}", hint=f"holdfast logs {run.id} -f --from-byte {cursor.at}")
