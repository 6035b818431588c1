"""`holdfast resume`: continue a run that has ended, or that nothing carries any more.

There is one way in: start the shim where none is live, then ask the supervisor. A run that had not ended (the
machine was restarted) is continued by its supervisor without being asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from holdfast import runs
from holdfast.commands.arguments import RunArgument, going_on, say
from holdfast.commands.attach import attach
from holdfast.commands.liveness import ENDED, POLL_S, live, sending, status_of, when_over
from holdfast.commands.resumable import At, Elsewhere, source
from holdfast.commands.secrets import secrets_of
from holdfast.errors import HoldfastError, LeaseHeld, UsageError
from holdfast.runs import RunDir, plan_of

_ANSWER_S = 15.0


@click.command("resume")
@click.argument("target", metavar="RUN|URL[@STEP|@best]", type=source, cls=RunArgument, required=False)
@click.option(
    "--secret", "secrets", multiple=True, metavar="K[=V]", help="For a URL: a secret of the run, given again."
)
@click.option("--all", "everything", is_flag=True, help="Every run that was preempted or cut off, as after a reboot.")
@click.option("--detach", "-d", is_flag=True, help="Leave it; otherwise stay with it as `attach` does.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def command(
    target: tuple[RunDir, At] | Elsewhere | None, secrets: tuple[str, ...], everything: bool, detach: bool,
    argv: tuple[str, ...],
) -> int:  # fmt: skip
    """Continue RUN from its newest checkpoint, from STEP, or from the best one. Later steps are kept aside.

    Of a URL, what that mirror holds is continued here, with COMMAND in place of its own when one is given.
    """
    if (target is None) != everything:
        raise UsageError("give either a run or --all", hint="holdfast ps --all lists every run")
    if target is None:
        return _resume_all()
    if not isinstance(target, tuple):
        return _resume_elsewhere(target, secrets, argv, detach=detach)
    if secrets or argv:
        raise UsageError("secrets and a command are for a URL", hint="a run here has its own")
    run, at = target
    shown = run.output.stat().st_size if run.output.exists() else 0
    resume(run, at)
    if detach:
        say(f"{run.id} continues", hint=f"holdfast attach {run.id}")
        return 0
    return attach(run, from_byte=shown)


def _resume_elsewhere(given: Elsewhere, secrets: Sequence[str], argv: Sequence[str], *, detach: bool) -> int:
    from holdfast.commands import resume_elsewhere
    from holdfast.process import start_shim

    run, values = resume_elsewhere.resume(given, secrets=secrets, argv=argv, environ=os.environ)
    start_shim(run, secrets=values)
    if detach:
        click.echo(run.id)
        say(f"{run.id} continues here", hint=f"holdfast attach {run.id}")
        return 0
    return attach(run)


def resume(run: RunDir, at: At) -> None:
    """Make it continue. Raises UsageError when it is running, HoldfastError when it cannot be started."""
    from holdfast.process import start_shim

    plan = plan_of(run)
    if plan.get("alone"):
        raise UsageError(f"{run.id} was started by its own script", hint="start the script again: it continues")
    status = status_of(run)
    before = status["state"]
    if before in ENDED:
        if sending(run, status):
            say(f"{run.id} still sends to its mirror; it continues after that")
            with going_on(f"{run.id} sends on; it was not resumed", hint=f"holdfast resume {run.id}"):
                when_over(run)
        _ask(run, at, lambda: start_shim(run, secrets=secrets_of(plan, os.environ)))
    elif at is not None:
        hint = f"holdfast resume {run.id}, then holdfast stop {run.id}; after that going back is possible"
        raise UsageError(f"{run.id} is {before}: only a run that has ended can go back to {at}", hint=hint)
    elif live(run):
        raise UsageError(f"{run.id} is {before} already", hint=f"holdfast attach {run.id}")
    else:
        start_shim(run, secrets=secrets_of(plan, os.environ))


def cut_off(status: Mapping[str, Any], living: bool) -> bool:
    """Whether `--all` continues it: it had not ended and nothing carries it, or it was preempted. Pure."""
    return bool(status.get("to_be_continued")) if status["state"] in ENDED else not living


def _ask(run: RunDir, at: At, start: Callable[[], None]) -> None:
    """POST /resume to a supervisor that may be about to leave, or only just starting: then it is asked again."""
    deadline = time.monotonic() + _ANSWER_S
    while not _asked(run, at, start, last=time.monotonic() > deadline):
        time.sleep(POLL_S)


def _asked(run: RunDir, at: At, start: Callable[[], None], *, last: bool) -> bool:
    """Whether a supervisor took it; when none was there to ask, `last` raises and otherwise it is False."""
    from holdfast.node import client

    try:
        if not live(run):
            start()
        client.call(run, "POST", "/resume", {"at": at})
    except (client.NotLive, LeaseHeld):
        if last:
            raise
        return False
    return True


def _resume_all() -> int:
    from holdfast.commands import standby

    return max([standby.again(), *(_resume_one(run) for run in runs.every())])


def _resume_one(run: RunDir) -> int:
    """One run that cannot go on must not keep the others from it."""
    try:
        if cut_off(status_of(run), live(run)):
            resume(run, None)
            say(f"{run.id} continues")
    except HoldfastError as error:
        say(f"{run.id}: {error}", hint=error.hint)
        return error.exit_code
    return 0
