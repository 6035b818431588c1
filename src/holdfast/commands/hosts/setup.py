"""`holdfast host setup`: what this machine does for runs when nobody is there."""

from __future__ import annotations

import sys

import click

from holdfast import runs
from holdfast.bundle import places
from holdfast.commands import clockwork
from holdfast.commands.arguments import say
from holdfast.commands.cronfields import AT_BOOT
from holdfast.errors import UsageError

_KEY = "resume"


@click.command("setup")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--remove", is_flag=True, help="Take it out again.")
@click.option(
    "--by", type=click.Choice(["systemd", "cron"]), help="What starts them.  [default: what this machine has]"
)
def command(yes: bool, remove: bool, by: str | None) -> None:
    """Continue unended and preempted runs by themselves after a reboot: a user service, or an @reboot entry of cron."""
    try:
        works = clockwork.pick(by)
    except clockwork.NoClockwork as error:
        raise clockwork.NoClockwork(
            f"{error}: runs cannot continue by themselves after a reboot",
            hint="call `holdfast resume --all` from whatever this machine starts at boot",
        ) from error
    if remove:
        say("taken out" if works.remove(_KEY) else "there was nothing to take out")
        return
    argv = [
        *("/usr/bin/env", f"HOLDFAST_HOME={runs.home().absolute()}"),
        *(*places.command(), "resume", "--all"),
    ]
    if not yes:
        say(f"{works.NAME} would call at each boot: {' '.join(argv)}")
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to ask", hint="holdfast host setup --yes")
        click.confirm("set it up?", abort=True, err=True)
    works.install(_KEY, AT_BOOT, argv)
    say(f"runs continue after a reboot, by {works.NAME}", hint=works.hint())
