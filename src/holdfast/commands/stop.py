"""`holdfast stop`: save at a step all ranks agree on, then leave. `resume` continues exactly there."""

from __future__ import annotations

import click

from holdfast.commands.arguments import duration_option, going_on, run_argument, say
from holdfast.commands.liveness import must_be_live, when_over
from holdfast.commands.wording import plural
from holdfast.runs import RunDir


@click.command("stop")
@run_argument
@duration_option("--grace", help="Time for saving before SIGKILL. [default: stop_grace_period of the run]")
@click.option("--now", is_flag=True, help="Do not save first: the same as `holdfast kill`.")
@click.option("--wait/--no-wait", default=True, help="Come back when it has stopped. [default: wait]")
def command(run: RunDir, grace: float | None, now: bool, wait: bool) -> None:
    """Save, then stop RUN; a further `holdfast resume RUN` continues it."""
    end(run, "kill" if now else "stop", {} if grace is None or now else {"grace_s": grace}, wait=wait)


def end(run: RunDir, verb: str, body: dict[str, float], *, wait: bool) -> None:
    """POST /stop or /kill, then perhaps wait for the end. Raises HoldfastError, UsageError when the run is not live."""
    from holdfast.node import client

    must_be_live(run, verb)
    client.call(run, "POST", f"/{verb}", body)
    if not wait:
        say(f"{run.id} was asked to {verb}")
        return
    with going_on(f"{run.id}: {verb} was asked for and goes on", hint=f"holdfast wait {run.id}"):
        status = when_over(run)
    saved = (status.get("checkpoint") or {"step": 0})["step"]
    said = f"{run.id} {status['state']}" + (f" at step {status['step']}" if status.get("step") is not None else "")
    if (behind := (status.get("step") or 0) - saved) > 0:
        since = "since the newest checkpoint" if status.get("checkpoint") else "that no checkpoint holds"
        said += f"; {plural(behind, 'step')} {since} will be done again"
    say(said, hint=f"holdfast resume {run.id}" if status["state"] == "stopped" else "")
