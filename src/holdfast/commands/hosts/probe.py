"""`holdfast host probe`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace

import click

from holdfast.commands.arguments import json_option, print_json, say
from holdfast.commands.hosts.options import host_argument
from holdfast.errors import UsageError

_MOST_CLIFFS = 12  # a login each


@click.command("probe")
@host_argument
@click.option("--idle", is_flag=True, help="Also how long a connection may be silent: up to an hour, a login a length.")
@click.option("--cliffs", metavar="60s,2m,...", help="Lengths of silence to try, in place of 1 min … 1 h.")
@json_option
def command(host: str, idle: bool, cliffs: str | None, as_json: bool) -> None:
    """Measure the way to HOST, choose its keepalive, and keep both with the evidence."""
    from holdfast.link import hosts, include, probing, target

    if cliffs and not idle:
        raise UsageError("--cliffs says which lengths --idle tries", hint="add --idle")
    lengths_s = _lengths(cliffs) if cliffs else probing.CLIFFS_S
    to = target.resolve(host, config=target.users_config())
    measured = asyncio.run(probing.probe(to, tell=say))
    before = hosts.load().get(host, hosts.Host()).measured
    if idle:
        with _patience(max(lengths_s)):
            limit = asyncio.run(probing.idle_limit(to, measured.trip_s, lengths_s, tell=say))
        measured = replace(measured, idle=limit)
    elif before is not None:
        measured = replace(measured, idle=before.idle)
    known = hosts.update(host, measured=measured)
    if host in include.load():
        include.put(host, include.block(host, known))
    keepalive, why = hosts.automatic(measured)
    if as_json:
        print_json({"host": host, **asdict(measured), "keepalive": hosts.show_keepalive(keepalive), "why": why})
        return
    if measured.idle is not None:
        click.echo(f"the network bears {hosts.show_idle(measured.idle)} of silence")
    click.echo(f"keepalive {hosts.show_keepalive(keepalive)}: {why}")
    if known.settings.keepalive not in (None, "auto"):
        say(f"{host} is set to another keepalive, which counts", hint=f"holdfast host config {host} --keepalive auto")


def _lengths(text: str) -> Sequence[float]:
    from holdfast.units import parse_duration

    lengths_s = [parse_duration(part) for part in text.split(",")]
    if not 0 < len(lengths_s) <= _MOST_CLIFFS or min(lengths_s) <= 0:
        raise UsageError(f"{text!r} are not 1 to {_MOST_CLIFFS} lengths of silence", hint="--cliffs 60s,2m,5m")
    return lengths_s


@contextmanager
def _patience(longest_s: float) -> Iterator[None]:
    """A bar to the end of the longest silence, where somebody looks."""
    if not sys.stderr.isatty():
        yield
        return
    import threading
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    over = threading.Event()
    with Progress(
        TextColumn("silent"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as shown:
        task, began_s = shown.add_task("silent", total=longest_s), time.monotonic()

        def go_on() -> None:
            while not over.wait(0.5):
                shown.update(task, completed=time.monotonic() - began_s)

        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
