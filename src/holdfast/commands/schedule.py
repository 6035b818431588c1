"""`holdfast schedule`: start a run file by the clock, by the user's own cron or systemd timer.

Runs of one schedule never overlap: what the clock starts holds a lock for as long as it stays with its run, and
skips when an earlier run has not ended (it may have been continued after a reboot, without the lock).
Secrets must come from `{file:}` or `{command:}`; the clock's environment has no others.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click

from holdfast import fsio, process, runs
from holdfast.bundle import places
from holdfast.commands import clockwork, cronfields
from holdfast.commands.arguments import json_option, print_json, print_table, say
from holdfast.commands.liveness import ENDED, exit_code_of, status_of, when_over
from holdfast.commands.wording import columns
from holdfast.errors import HoldfastError, RunNotFound, UsageError
from holdfast.runs import RunDir

NIGHTLY = "0 2 * * *"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}")


class RunFileFirst(click.Group):
    """`schedule RUN_FILE …` is `schedule add RUN_FILE …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `add` in front of whatever is no verb of this group and no plea for help."""
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["add", *args]
        return super().parse_args(ctx, args)


@click.group("schedule", cls=RunFileFirst)
def command() -> None:
    """Start runs by the clock: `holdfast schedule RUN_FILE --nightly`, `ls`, `rm NAME`."""


@command.command("add")
@click.argument("run_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--cron", "when", help='Five cron fields, for instance "0 2 * * *".')
@click.option("--nightly", is_flag=True, help=f"At two in the morning: the same as --cron {NIGHTLY!r}.")
@click.option("--name", help="Of the schedule. [default: the run file's folder]")
@click.option("--by", type=click.Choice(["systemd", "cron"]), help="Whose clock.  [default: what this machine has]")
@click.option("--print-ci", is_flag=True, help="Print the same as a CI recipe and change nothing.")
def add(run_file: Path, when: str | None, nightly: bool, name: str | None, by: str | None, print_ci: bool) -> None:
    """Run RUN_FILE by the clock."""
    if (when is None) != nightly:
        raise UsageError("say when", hint="--nightly or --cron '0 2 * * *'")
    fields = cronfields.check(when or NIGHTLY)
    path = run_file.resolve()
    chosen_name = _checked(name or path.parent.name)
    if print_ci:
        click.echo(ci_recipe(chosen_name, fields, run_file))
        return
    _check_is_here(path)
    works = clockwork.pick(by)
    _remember(chosen_name, {"run_file": str(path), "cron": fields, "by": works.NAME, "environ": _environ()})
    works.install(f"schedule-{chosen_name}", fields, _fire_argv(chosen_name))
    say(f"{chosen_name} runs at {fields!r} by {works.NAME}", hint=works.hint())


@command.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """The schedules of this user."""
    found = {path.stem: json.loads(path.read_bytes()) for path in sorted(_folder().glob("*.json"))}
    if as_json:
        print_json([{"name": name, **told} for name, told in found.items()])
        return
    if not found:
        say("nothing is scheduled", hint="holdfast schedule RUN_FILE --nightly")
        return
    rows = [(name, told["cron"], told["by"], told.get("run", "-"), told["run_file"]) for name, told in found.items()]
    print_table(columns([("NAME", "WHEN", "BY", "LAST RUN", "RUN FILE"), *rows]))


@command.command("rm")
@click.argument("name")
def rm(name: str) -> None:
    """Take the schedule NAME out again. Its runs stay."""
    path = _file(name)
    told = _recall(name)
    clockwork.pick(told["by"]).remove(f"schedule-{name}")
    path.unlink()
    path.with_suffix(".lock").unlink(missing_ok=True)
    say(f"{name} is not scheduled any more")


@command.command("fire", hidden=True)
@click.argument("name")
def fire(name: str) -> int:
    """What the clock calls: start the run and stay with it, unless an earlier one has not ended."""
    told = _recall(name)
    try:
        lock = fsio.lock_file(_file(name).with_suffix(".lock"))
    except BlockingIOError:
        say(f"{name}: the earlier run is still going; skipped")
        return 0
    with lock:
        return _fired(name, told)


def _fired(name: str, told: dict[str, Any]) -> int:
    """The exit status of the run that it has started and seen end, or 0 where one is still going."""
    if (earlier := _unended(told)) is not None:
        say(f"{name}: {earlier} has not ended; skipped")
        return 0
    _check_is_here(Path(told["run_file"]))
    run = _start(name, told)
    status = when_over(run, every_s=5.0)
    say(f"{run.id} {status['state']}")
    return exit_code_of(status)


def ci_recipe(name: str, cron: str, run_file: Path) -> str:
    """The same as a workflow file for GitHub Actions; other CI systems have the same three parts. Pure."""
    return f"""\
# The clock, one at a time, one command: translate these three for another CI system.
name: {name}
on:
  schedule: [{{cron: "{cron}"}}]
concurrency: {{group: holdfast-{name}, cancel-in-progress: false}}
jobs:
  {name}:
    runs-on: self-hosted
    timeout-minutes: 4320
    steps:
      - uses: actions/checkout@v4
      - run: holdfast run -f {shlex.quote(str(run_file))}"""


def _check_is_here(run_file: Path) -> None:
    """Raises UsageError for one whose runs are made on other machines, RunFileError for mistakes in it."""
    from holdfast import spec
    from holdfast.commands.run import read_sources

    sources, _ = read_sources([str(run_file)], ())
    infra = spec.load(sources, environ=os.environ).resources.infra
    if infra != "local":
        where = infra if isinstance(infra, str) else " or ".join(infra)
        raise UsageError(
            f"{run_file} runs on {where}: this machine's clock has no keys to log in with, and may sleep",
            hint="schedule it there, with infra: local: holdfast schedule add RUN_FILE_THERE --nightly --on HOST",
        )


def _start(name: str, told: dict[str, Any]) -> RunDir:
    argv = [*process.command(), "run", "-d", "--json", "-f", told["run_file"]]
    folder = Path(told["run_file"]).parent
    done = subprocess.run(argv, cwd=folder, env={**os.environ, **told["environ"]}, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise HoldfastError(f"{name}: `holdfast run -f {told['run_file']}` exited with {done.returncode}")
    run = RunDir(Path(json.loads(done.stdout)["dir"]))
    _remember(name, {**told, "run": run.id})
    return run


def _unended(told: dict[str, Any]) -> str | None:
    try:
        run = runs.find(told.get("run", ""))
    except RunNotFound:
        return None
    return run.id if status_of(run)["state"] not in ENDED else None


def _fire_argv(name: str) -> list[str]:
    return [
        *("/usr/bin/env", f"HOLDFAST_HOME={runs.home().absolute()}"),
        *(*places.command(), "schedule", "fire", name),
    ]


def _environ() -> dict[str, str]:
    """What the clock's own bare environment lacks for `run` to behave as it does now."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "LANG") if name in os.environ}
    return {**kept, "HOLDFAST_HOME": str(runs.home().absolute())}


def _folder() -> Path:
    return runs.home() / "schedules"


def _file(name: str) -> Path:
    return _folder() / f"{_checked(name)}.json"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a schedule", hint="letters, digits, dot, dash and underscore; --name")
    return name


def _recall(name: str) -> dict[str, Any]:
    try:
        told = json.loads(_file(name).read_bytes())
    except FileNotFoundError:
        raise UsageError(f"no schedule named {name!r}", hint="holdfast schedule ls") from None
    assert isinstance(told, dict)
    return told


def _remember(name: str, told: dict[str, Any]) -> None:
    from holdfast.fsio import replace

    _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    replace(_file(name), json.dumps(told, indent=2).encode())
