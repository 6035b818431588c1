"""`holdfast ckpt`: the checkpoints of a run, read and verified here, whatever the run is doing meanwhile."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import chosen, clock_of, json_option, optional_run, print_json, say
from holdfast.commands.liveness import plan_of
from holdfast.commands.resume import At, target_argument
from holdfast.commands.wording import age, clock, columns, number, plural
from holdfast.errors import NoValidCheckpoint, UsageError
from holdfast.runs import RunDir
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.checkpoint.load import CheckpointInfo

_HEADINGS = ("CHECKPOINT", "STEP", "EPOCH", "AGE", "SIZE", "REASON", "METRICS")


@click.group("ckpt")
def command() -> None:
    """List, show and verify the checkpoints of a run."""


@command.command("ls")
@optional_run
@click.option("--all", "-a", "everything", is_flag=True, help="Also those that `resume RUN@STEP` has set aside.")
@json_option
@click.pass_context
def ls(context: click.Context, run: RunDir | None, everything: bool, as_json: bool) -> None:
    """The checkpoints of RUN, newest last."""
    meant = chosen(run)
    found = [info for info in _all(meant) if everything or info.live]
    if as_json:
        print_json([facts(info) for info in found])
    elif found:
        click.echo("\n".join(table(found, clock_of(context)())))
    else:
        say(f"{meant.id} has no checkpoint yet", hint=f"holdfast save {meant.id}")


@command.command("show")
@target_argument()
@json_option
def show(target: tuple[RunDir, At], as_json: bool) -> None:
    """What one checkpoint holds: by default the newest."""
    run, at = target
    info = _one(run, at)
    manifest = json.loads(info.path.read_bytes())
    if as_json:
        print_json({**facts(info), "manifest": manifest})
        return
    lines = [("checkpoint", name_of(info)), ("step", f"{info.step}, epoch {info.epoch}"), ("time", clock(info.time_s))]
    lines += [("reason", info.reason), ("size", f"{show_size(info.size_bytes)}, {plural(info.world, 'rank')}")]
    lines += [(name, number(value)) for name, value in info.metrics.items()]
    lines += contents(manifest)
    click.echo("\n".join(columns(lines)))


@command.command("verify")
@target_argument()
@json_option
def verify(target: tuple[RunDir, At], as_json: bool) -> int:
    """Read every byte of RUN's checkpoints, or of one, and compare the hashes. Exits with 12 when one is damaged."""
    from holdfast.checkpoint import load

    run, at = target
    root = _root(run)
    chosen_ones = _all(run) if at is None else [_one(run, at)]
    problems = {name_of(info): load.verify(root, info) for info in _with_progress(chosen_ones)}
    if at is None and (wrong := load.problems(root)):
        problems["folder"] = wrong
    damaged = {name: said for name, said in problems.items() if said}
    if as_json:
        print_json([{"checkpoint": name, "problems": said} for name, said in problems.items()])
    else:
        for name, said in problems.items():
            click.echo(f"{name}  {'; '.join(said) or 'intact'}")
    if damaged:
        say(f"{run.id}: {', '.join(damaged)} damaged", hint="a resume takes the newest intact one, and says so")
        return NoValidCheckpoint.exit_code
    if not problems:
        say(f"{run.id} has no checkpoint yet")
    return 0


def name_of(info: CheckpointInfo) -> str:
    """Term and sequence, as in the manifest's file name."""
    return f"{info.term}-{info.sequence}"


def facts(info: CheckpointInfo) -> dict[str, Any]:
    """One entry of `ckpt ls --json`. Pure."""
    names = ("term", "sequence", "step", "epoch", "time_s", "reason", "metrics", "world", "size_bytes", "live")
    return {**{name: getattr(info, name) for name in names}, "path": str(info.path)}


def table(found: Iterable[CheckpointInfo], now_s: float) -> list[str]:
    """Headings and a line a checkpoint. Pure."""
    rows = [
        (
            name_of(info) + ("" if info.live else " (aside)"),
            str(info.step),
            str(info.epoch),
            age(now_s - info.time_s),
            show_size(info.size_bytes),
            info.reason,
            ", ".join(f"{name} {number(value)}" for name, value in info.metrics.items()) or "-",
        )
        for info in found
    ]
    return columns([_HEADINGS, *rows])


def contents(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How many tensors and bytes of each kind a manifest names, over all ranks. Pure."""
    sizes: dict[str, int] = {}
    tensors: dict[str, set[str]] = {}
    for chunk in (chunk for rank in manifest["ranks"] for chunk in rank["chunks"]):
        kind = chunk["kind"]
        sizes[kind] = sizes.get(kind, 0) + chunk["bytes"]
        tensors.setdefault(kind, set()).update(tensor["name"] for tensor in chunk["tensors"])
    for kind, total in sizes.items():
        yield kind, f"{plural(len(tensors[kind]), 'tensor')}, {show_size(total)}"


def _root(run: RunDir) -> Path:
    return Path(plan_of(run)["checkpoint"]["dir"])


def _all(run: RunDir) -> list[CheckpointInfo]:
    from holdfast.checkpoint import load

    return list(load.checkpoints(_root(run)))


def _one(run: RunDir, at: At) -> CheckpointInfo:
    """The newest live one, the newest at a step, or the best. Raises UsageError."""
    found = _all(run)
    if at == "best":
        return _best(run, found)
    fitting = [info for info in found if (info.live if at is None else info.step == at)]
    fitting.sort(key=lambda info: info.live)  # one set aside only where no live one has that step
    if not fitting:
        wanted = "checkpoint" if at is None else f"checkpoint at step {at}"
        raise UsageError(f"{run.id} has no {wanted}", hint=f"holdfast ckpt ls --all {run.id}")
    return fitting[-1]


def _best(run: RunDir, found: list[CheckpointInfo]) -> CheckpointInfo:
    best = plan_of(run)["checkpoint"]["keep"].get("best")
    if not best:
        raise UsageError(f"{run.id} does not say what is best", hint="set checkpoint.keep.best in the run file")
    fitting = [info for info in found if best["metric"] in info.metrics]
    if not fitting:
        raise UsageError(f"no checkpoint of {run.id} has the metric {best['metric']!r}")
    sign = 1 if best["mode"] == "min" else -1
    return min(fitting, key=lambda info: sign * info.metrics[best["metric"]])


def _with_progress(found: list[CheckpointInfo]) -> Iterable[CheckpointInfo]:
    """The same, behind a progress bar where a person looks."""
    if not sys.stderr.isatty():
        return found
    from rich.console import Console
    from rich.progress import track

    return track(found, description="verifying", transient=True, console=Console(stderr=True))
