"""`holdfast wait`: come back when a run is over, with its own exit code."""

from __future__ import annotations

import time

import click

from holdfast.commands.arguments import duration_option, going_on, run_argument, say
from holdfast.commands.liveness import exit_code_of, polls
from holdfast.runs import RunDir

TIMED_OUT = 124  # as timeout(1) returns


@click.command("wait")
@run_argument
@duration_option("--timeout", help="Give up after this long, with exit code 124.")
def command(run: RunDir, timeout: float | None) -> int:
    """Wait until RUN is over; exits with the run's own code."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with going_on(f"{run.id} goes on", hint=f"holdfast wait {run.id} waits again"):
        for status in polls(run):
            if deadline is not None and time.monotonic() > deadline:
                say(f"{run.id} is still {status['state']} after {timeout:g} s")
                return TIMED_OUT
    say(f"{run.id} {status['state']}")
    return exit_code_of(status)
