"""Which checkpoints a `ckpt` verb speaks of, and how they are called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.commands.liveness import plan_of
from holdfast.commands.resume import At
from holdfast.errors import UsageError
from holdfast.runs import RunDir

if TYPE_CHECKING:
    from holdfast.checkpoint.load import CheckpointInfo


def name_of(info: CheckpointInfo) -> str:
    """Term and sequence, as in the manifest's file name."""
    return f"{info.term}-{info.sequence}"


def facts(info: CheckpointInfo) -> dict[str, Any]:
    """One entry of `ckpt ls --json`. Pure."""
    names = ("term", "sequence", "step", "epoch", "time_s", "reason", "metrics", "world", "size_bytes", "live")
    return {**{name: getattr(info, name) for name in names}, "path": str(info.path)}


def root_of(run: RunDir) -> Path:
    """The checkpoint folder of a run."""
    return Path(plan_of(run)["checkpoint"]["dir"])


def every(run: RunDir) -> list[CheckpointInfo]:
    """Every checkpoint with a whole manifest, newest last, live and aside."""
    from holdfast.checkpoint import load

    return list(load.checkpoints(root_of(run)))


def one(run: RunDir, at: At) -> CheckpointInfo:
    """The newest live one, the newest at a step, or the best. Raises UsageError."""
    found = every(run)
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
