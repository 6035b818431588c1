"""`holdfast attach`: a live view of a run. It only looks: closing it, Ctrl-C or a lost terminal leave the run alone."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import click

from holdfast.commands import logs
from holdfast.commands.arguments import at_terminal, chosen, optional_run, say
from holdfast.commands.liveness import exit_code_of, polls
from holdfast.commands.status import metrics, progress, saved, waits
from holdfast.commands.wording import plural
from holdfast.errors import INTERRUPTED
from holdfast.output import Cursor, Output, Piece
from holdfast.runs import RunDir
from holdfast.units import show_duration, show_size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_LINES_BEFORE = 20
_LINE_BYTES = 1 << 20  # a longer line is shown in parts


@click.command("attach")
@optional_run
def command(run: RunDir | None) -> int:
    """Live view of RUN until it ends, then exit as it did. Ctrl-C leaves the run running."""
    meant = chosen(run)
    with Output(meant.output) as output:
        return attach(meant, from_byte=output.last_lines(_LINES_BEFORE))


def attach(run: RunDir, *, from_byte: int = 0) -> int:
    """Show `run`, its output from `from_byte` on, until it is over; returns its exit code, or 130 after Ctrl-C."""
    with _ctrl_c() as pressed:
        with Output(run.output) as output, _view() as view:
            cursor = Cursor(output, from_byte)
            for status in polls(run):
                view.show(status)
                view.write(cursor.new())
                if pressed:
                    break
        if pressed:
            say(
                f"\n{run.id} keeps running", hint=f"holdfast attach {run.id} comes back, holdfast stop {run.id} ends it"
            )
            return INTERRUPTED
    _tell_end(status)
    return exit_code_of(status)


@contextlib.contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """A list that is no longer empty once Ctrl-C was pressed; pressed again, it interrupts.

    KeyboardInterrupt at a moment of its own choosing can vanish: in a weakref callback, in the middle of an import.
    """
    pressed: list[int] = []

    def on_sigint(number: int, _frame: FrameType | None) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, on_sigint)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class View(Protocol):
    """What attach shows things on."""

    def show(self, status: dict[str, Any]) -> None:
        """Bring the standing up to date."""

    def write(self, pieces: Iterator[Piece]) -> None:
        """Add output."""


class PlainView:
    """Not a terminal: the output as it comes; on stderr new findings and what a queued run waits for, nothing else."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def show(self, status: dict[str, Any]) -> None:
        for finding in status.get("findings") or []:
            if finding["id"] not in self._told:
                self._told.add(finding["id"])
                say(f"finding {finding['id']}: {finding['message']}", hint=finding.get("hint") or "")
        if (text := waits(status)) and text not in self._told:
            self._told.add(text)
            say(f"{status['run']} waits {text}")

    def write(self, pieces: Iterator[Piece]) -> None:
        logs.write(pieces)


class LiveView:
    """A terminal: output lines scroll by above a progress bar and a line of facts."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live: Live = Live(console=Console(), auto_refresh=False, transient=True)
        self._rest = b""

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._rest:
            self._print(self._rest)
        self._live.stop()

    def show(self, status: dict[str, Any]) -> None:
        self._live.update(standing(status), refresh=True)

    def write(self, pieces: Iterator[Piece]) -> None:
        for piece in pieces:
            if piece.data is None:
                self._live.console.print(f"({show_size(piece.length)} of output were rotated away)", style="dim")
                continue
            *lines, self._rest = (self._rest + piece.data).split(b"\n")
            if len(self._rest) > _LINE_BYTES:
                lines, self._rest = [*lines, self._rest], b""
            for line in lines:
                self._print(line)

    def _print(self, line: bytes) -> None:
        """One line as a terminal would leave it: what a carriage return overwrote is gone."""
        from rich.text import Text

        shown = re.split(rb"\r+(?!$)", line)[-1].rstrip(b"\r").decode(errors="replace")
        self._live.console.print(Text.from_ansi(shown), soft_wrap=True)


def facts(status: dict[str, Any]) -> str:
    """The line below the bar: values, speed, time left, restarts, last checkpoint. Pure."""
    said = [metrics(status)]
    if status.get("eta_s") is not None:
        said.append(f"left {show_duration(status['eta_s'])}")
    if status.get("restarts"):
        said.append(plural(status["restarts"], "restart"))
    said.append(f"waits {text}" if (text := waits(status)) else f"saved {saved(status)}")
    said.extend(f"finding {finding['id']}" for finding in status.get("findings") or [])
    return "  ".join(text for text in said if text)


def _view() -> contextlib.AbstractContextManager[View]:
    return LiveView() if at_terminal() else contextlib.nullcontext(PlainView())


def standing(status: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Column, Table
    from rich.text import Text

    total = status.get("steps_total")
    head = Table.grid(
        Column(no_wrap=True), Column(no_wrap=True), Column(max_width=28), Column(no_wrap=True), padding=(0, 1)
    )
    bar = ProgressBar(total=total, completed=status.get("step") or 0) if total else Text("")
    head.add_row(Text(status["run"], style="bold"), status["state"], bar, progress(status))
    return Group(head, Text(facts(status), style="dim", overflow="ellipsis", no_wrap=True))


def _tell_end(status: dict[str, Any]) -> None:
    run, restarts = status["run"], status.get("restarts") or 0
    said = f"{run} {status['state']}"
    if text := progress(status):
        said += f" at {text}"
    if restarts:
        said += f", after {plural(restarts, 'restart')}"
    hint = {"failed": f"holdfast explain {run}", "stopped": f"holdfast resume {run}", "lost": f"holdfast resume {run}"}
    say(said, hint=hint.get(status["state"], ""))
