"""`holdfast save`: a checkpoint at the next step, without stopping anything."""

from __future__ import annotations

import time

import click

from holdfast.commands.arguments import chosen, duration_option, going_on, optional_run, say
from holdfast.commands.liveness import ENDED, POLL_S, must_be_live, status_of
from holdfast.commands.wait import TIMED_OUT
from holdfast.errors import HoldfastError, StoreRefused
from holdfast.events import AttemptEnded, CheckpointCommitted, CheckpointFailed, Event
from holdfast.heartbeat import Page, page_path
from holdfast.runs import RunDir


class NotSavedInTime(HoldfastError):
    """`--wait` gave up; the request stands."""

    exit_code = TIMED_OUT


@click.command("save")
@optional_run
@click.option("--reason", default="asked for", show_default=True, help="Kept with the checkpoint.")
@click.option("--wait", is_flag=True, help="Until it is durable; fails when the save does.")
@duration_option("--timeout", default="30m", show_default=True, help="How long --wait waits.")
def command(run: RunDir | None, reason: str, wait: bool, timeout: float) -> None:
    """Ask RUN for a checkpoint at its next step. Without RUN: the only live one."""
    meant = chosen(run, live_only=True)
    must_be_live(meant, "save")
    seen = _journal_bytes(meant)
    request(meant, reason)
    if not wait:
        say(f"{meant.id} saves at its next step")
        return
    with going_on(f"{meant.id} was asked to save, and goes on", hint=f"holdfast status {meant.id}"):
        committed = _outcome(meant, seen, _asked_step(meant), timeout)
    click.echo(f"step {committed.step} saved")


def request(run: RunDir, reason: str) -> int:
    """Ask the supervisor; returns the number of the request. Raises HoldfastError."""
    from holdfast.node import client

    return int(client.call(run, "POST", "/save", {"reason": reason})["number"])


def verdict(events: list[Event], step: int) -> CheckpointCommitted | None:
    """The first checkpoint at or after `step`; None while there is none. Raises StoreRefused when it failed."""
    for event in events:
        if isinstance(event, CheckpointCommitted) and event.step >= step:
            return event
        if isinstance(event, CheckpointFailed) and event.step >= step:
            raise StoreRefused(f"the save of step {event.step} failed: {event.message}", hint="holdfast status")
        if isinstance(event, AttemptEnded):
            raise HoldfastError(
                f"attempt {event.attempt} ended at step {event.step} before the save", hint="holdfast explain"
            )
    return None


def _asked_step(run: RunDir) -> int:
    """The step at which the ranks will save, as the supervisor wrote it into rank 0's page."""
    path = page_path(run.runtime, 0)
    if not path.exists():
        return 0
    page = Page(path)
    try:
        return page.get("save_at_step")
    finally:
        page.close()


def _outcome(run: RunDir, seen: int, step: int, timeout_s: float) -> CheckpointCommitted:
    from holdfast.journal import read

    deadline = time.monotonic() + timeout_s
    while (found := verdict(read(run.journal, seen)[0], step)) is None:
        if time.monotonic() > deadline:
            raise NotSavedInTime(f"step {step} is not saved after {timeout_s:g} s", hint=f"holdfast status {run.id}")
        if (state := status_of(run)["state"]) in ENDED:
            raise HoldfastError(f"{run.id} {state} before the save", hint=f"holdfast explain {run.id}")
        time.sleep(POLL_S)
    return found


def _journal_bytes(run: RunDir) -> int:
    return run.journal.stat().st_size if run.journal.exists() else 0
