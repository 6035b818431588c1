"""`holdfast run`: a run file or a command becomes a run, is started, and is looked at until it ends."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.commands import afar
from holdfast.commands.arguments import duration_option, keepalive_option
from holdfast.commands.reaching import complete_hosts
from holdfast.commands.secrets import secret_values
from holdfast.errors import RunFileError, UsageError
from holdfast.runs import RunDir, home

if TYPE_CHECKING:
    from holdfast.plan import Plan
    from holdfast.spec import Source, Spec

DEFAULT_FILE = "holdfast.yaml"
_STDIN = Path("-")


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option(
    "--file",
    "-f",
    "files",
    multiple=True,
    metavar="FILE",
    help=f"Run file, by default {DEFAULT_FILE}; several are merged. -: standard input.",
)
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Put C into the run file at A.B.")
@click.option("--env", "-e", multiple=True, metavar="K[=V]", help="Environment variable; without V, the caller's.")
@click.option("--secret", "secrets", multiple=True, metavar="K[=V]", help="The same, and written nowhere.")
@click.option("--gpus", metavar="TYPE:N", help="So many GPUs for itself, when it is its turn: 2, A100 or A100:2.")
@click.option("--from", "init", metavar="TARGET", help="Begin with the weights of RUN[@…] or of a checkpoint folder.")
@click.option("--name", help="The run's name.")
@click.option("--id", "run_id", metavar="ID", help="Continue the run with this id, or make it.")
@click.option("--order", hidden=True, metavar="TOKEN", help="Make no second run of this order.")
@click.option(
    "--on", "host", metavar="HOST", shell_complete=complete_hosts, help="There instead of here; of a pool, the freest."
)
@duration_option("--timeout", default="30s", show_default=True, help="How long HOST may not answer.")
@keepalive_option
@click.option("--snapshot/--in-place", "copy", default=None, help="Run a copy of the code, or the code itself.")
@click.option("--detach", "-d", is_flag=True, help="Start it and leave it.")
@click.option("--dry-run", is_flag=True, help="Show the plan and start nothing.")
@click.option("--json", "as_json", is_flag=True, help="With -d the run and its folder, with --dry-run the plan.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def command(
    files: Sequence[str],
    overrides: Sequence[str],
    env: Sequence[str],
    secrets: Sequence[str],
    gpus: str | None,
    init: str | None,
    name: str | None,
    run_id: str | None,
    order: str | None,
    host: str | None,
    timeout: float,
    copy: bool | None,
    detach: bool,
    dry_run: bool,
    as_json: bool,
    argv: Sequence[str],
) -> int:
    """Start a run from a run file, or of COMMAND, and stay with it. Ctrl-C leaves it running."""
    from holdfast import creation, process, spec, urls

    if as_json and not (detach or dry_run):
        raise UsageError("--json needs -d or --dry-run", hint="holdfast status --json tells of a run that is there")
    if host is None and (existing := _existing(run_id, order)) is not None and not dry_run:
        return _continue(existing, detach=detach, as_json=as_json)
    sources, base = read_sources(files, argv)
    if gpus is not None:
        overrides = [*overrides, f"resources.accelerators={gpus}"]
    declared = spec.load(
        sources, overrides=overrides, env=env, secrets=secrets, environ=os.environ, name=name, argv=argv
    )
    ordered = creation.Order(
        spec=declared,
        base=base,
        copy=bool(sources) if copy is None else copy,
        id=run_id,
        environ=process.callers(os.environ),
        token=order or "",
    )
    called = declared.name or creation.default_name(declared, base, from_file=bool(sources))
    if there := _elsewhere(host, declared):
        from holdfast.commands import run_elsewhere

        wanted = run_elsewhere.Wanted(there, ordered, called, copy, init, within_s=timeout)
        if dry_run:
            return run_elsewhere.show(wanted, secrets, as_json=as_json)
        return run_elsewhere.start(wanted, secrets, detach=detach, as_json=as_json)
    if init is not None:
        ordered = replace(ordered, init=_place_of(init))
    planned = creation.preview(ordered, called)
    _check_devices(planned)
    if planned.checkpoint.mirror is not None:
        urls.scheme_of(planned.checkpoint.mirror.url)
    if dry_run:
        return _show(planned, copied=ordered.copy, as_json=as_json)
    values = secret_values(declared, planned, secrets, os.environ)
    _check_mirror(planned, values)
    run, plan = creation.create(ordered, called, creation.record_created)
    _warn(plan)
    return _start(run, values, detach=detach, as_json=as_json)


def _check_devices(plan: Plan) -> None:
    """Raise NoDevices for a run that would wait for ever, NoAnswer where nobody can tell."""
    if plan.accelerators:
        from holdfast.node import nvidia

        nvidia.must_have(plan.accelerators, plan.env.get("PATH"))


def _place_of(text: str) -> str:
    """The checkpoint meant, so that it stays the same one. Raises RunNotFound, UsageError, NoValidCheckpoint."""
    from holdfast.checkpoint import target

    meant = target.parse(text)
    info = target.find(meant)
    return f"{meant.root}@{info.term}-{info.sequence}"


def read_sources(files: Sequence[str], argv: Sequence[str]) -> tuple[list[Source], Path]:
    """The run files, and the folder that relative paths stand on. Raises UsageError, RunFileError."""
    from holdfast.spec import Source

    default = Path(DEFAULT_FILE)
    if not files and argv:
        if argv[0].endswith((".yaml", ".yml")):
            raise UsageError(f"{argv[0]} is not a command", hint=f"holdfast run -f {argv[0]}")
        if default.is_file():
            click.echo(f"note: {default} is not used; -f {default} would", err=True)
        return [], Path.cwd()
    if not files and not default.is_file():
        raise UsageError(f"there is no {default} here and no command was given", hint="holdfast run -- python train.py")
    paths = [Path(file) for file in files] or [default]
    base = Path.cwd() if paths[0] == _STDIN else paths[0].absolute().parent
    return [Source(str(path), _text(path)) for path in paths], base


def _text(path: Path) -> str:
    from holdfast.spec.document import MAX_BYTES

    try:
        with path.open("rb") if path != _STDIN else nullcontext(sys.stdin.buffer) as file:
            return file.read(MAX_BYTES + 1).decode("utf-8")
    except OSError as error:
        raise UsageError(f"run file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RunFileError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from error


def _elsewhere(host: str | None, declared: Spec) -> tuple[str, ...]:
    """The machines of which one is to run it, none for this one: what the command line says, else the run file."""
    infra = declared.resources.infra
    named = [host] if host else [infra] if isinstance(infra, str) else infra
    if named == ["local"]:
        return ()
    from holdfast.link import names, target

    config = target.users_config()
    return tuple(dict.fromkeys(each for name in named for each in names.named(name.removeprefix("ssh/"), config)))


def _existing(run_id: str | None, order: str | None) -> RunDir | None:
    """The run of that id, or the one that was made for that order already. Raises UsageError."""
    from holdfast import creation
    from holdfast.spec.fields import NAME

    if order is not None and (made := creation.ordered(order)) is not None:
        return made
    if run_id is None:
        return None
    if not NAME.fullmatch(run_id):
        raise UsageError(f"{run_id!r} cannot be a run id", hint="up to 63 letters, digits, '.', '_' or '-'")
    run = RunDir(home().absolute() / "runs" / run_id)
    return run if run.plan.is_file() else None


def _continue(run: RunDir, *, detach: bool, as_json: bool) -> int:
    """What a generated script wants of a run that is there: it goes on, whether it ended, was cut off, or lives."""
    from holdfast.commands.liveness import ENDED, live, status_of
    from holdfast.commands.resume import resume

    if not live(run) or status_of(run)["state"] in ENDED:
        resume(run, None)
    return _stay(run, detach=detach, as_json=as_json, said="continues")


def _start(run: RunDir, values: Mapping[str, str], *, detach: bool, as_json: bool) -> int:
    from holdfast.process import start_shim

    start_shim(run, secrets=values)
    return _stay(run, detach=detach, as_json=as_json, said="started")


def _stay(run: RunDir, *, detach: bool, as_json: bool, said: str) -> int:
    if not detach:
        from holdfast.commands.attach import attach

        return attach(run)
    if as_json:
        click.echo(json.dumps({"run": run.id, "dir": str(run.root)}))
    else:
        click.echo(run.id)
        click.echo(f"{run.id} {said}\nhint: holdfast attach {run.id}", err=True)
    return 0


def _show(plan: Plan, *, copied: bool, as_json: bool) -> int:
    from holdfast.commands.dry_run import describe

    click.echo(json.dumps(plan.to_json(), indent=2) if as_json else describe(plan, copied=copied))
    return 0


def _check_mirror(plan: Plan, secrets: Mapping[str, str]) -> None:
    """Talk to the mirror once: what is wrong with it is a warning, for training does not need it.

    Raises UsageError when it holds another run.
    """
    from holdfast import stores
    from holdfast.errors import StoreRefused

    mirror = plan.checkpoint.mirror
    if mirror is None:
        return
    try:
        store = stores.connect(mirror.url, {**os.environ, **plan.env, **secrets}, stores.IMPATIENT)
        taken = bool(store.list("leases/"))
    except StoreRefused as error:
        click.echo(f"warning: the mirror cannot be used now: {error}", err=True)
        click.echo(f"hint: {afar.typed(error.hint) or 'the run starts, and catches up when it can'}", err=True)
        return
    if taken:
        raise UsageError(
            f"{mirror.url} holds the checkpoints of another run",
            hint=f"put ${{run}} into checkpoint.mirror, or continue that run: holdfast resume {mirror.url}",
        )


def _warn(plan: Plan) -> None:
    from holdfast import findings
    from holdfast.node.place import ephemeral

    why = ephemeral(Path(plan.checkpoint.dir))
    if why:
        found = findings.finding("ephemeral-checkpoints", why)
        click.echo(f"warning: {found.message}\nhint: {found.hint}", err=True)
