"""Which checkpoint somebody means: RUN, RUN@STEP, RUN@best, RUN@TERM-SEQUENCE, and the same of a checkpoint folder."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from holdfast import runs
from holdfast.checkpoint import survey
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.errors import NoValidCheckpoint, RunNotFound, UsageError
from holdfast.runs import RunDir

At = int | Position | Literal["best"] | None  # a step, a place, the best, the newest
_POSITION = re.compile(r"(\d{1,15})-(\d{1,15})\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """A checkpoint folder, and which of its checkpoints. `run` is None for a folder that was named by its path."""

    root: Path
    at: At = None
    run: RunDir | None = None

    @property
    def name(self) -> str:
        """What people call it."""
        return self.run.id if self.run is not None else str(self.root)


def parse(text: str) -> Target:
    """What `text` names; whether the folder holds such a checkpoint is for `find` to say.

    Raises RunNotFound, UsageError, HoldfastError for a plan that cannot be read.
    """
    if (whole := _named(text)) is not None:
        return whole
    name, at_sign, at = text.rpartition("@")
    if not at_sign:
        raise _unknown(text)
    found = _named(name)
    if found is None:
        raise _unknown(name)
    return Target(found.root, at_of(text, name, at), found.run)


def at_of(text: str, name: str, at: str) -> At:
    """What stands behind the @ of `text`. Raises UsageError."""
    if at == "best":
        return "best"
    if at.isdecimal() and at.isascii() and len(at) < 16:
        return int(at)
    if place := _POSITION.match(at):
        return Position(int(place[1]), int(place[2]))
    raise UsageError(
        f"{text!r}: after @ comes a step, best or a checkpoint such as 3-17, not {at!r}",
        hint=f"holdfast ckpt ls {shlex.quote(name)}",
    )


def _named(name: str) -> Target | None:
    try:
        run = runs.find(name)
    except RunNotFound:
        folder = Path(name)
        return Target(folder.resolve()) if name and (folder / "manifests").is_dir() else None
    return Target(Path(runs.plan_of(run)["checkpoint"]["dir"]), None, run)


def _unknown(name: str) -> UsageError:
    if "/" in name:
        return UsageError(f"{name} is neither a run nor a checkpoint folder", hint="a checkpoint folder has manifests/")
    try:
        runs.find(name)
    except RunNotFound as error:
        return error
    raise AssertionError(name)


def every(target: Target) -> list[CheckpointInfo]:
    """Every checkpoint of its folder with a whole manifest, newest last, live and aside."""
    return list(survey.take(target.root).checkpoints)


def find(target: Target) -> CheckpointInfo:
    """The newest live one, the newest at a step, the one at a place, or the best.

    Raises UsageError; NoValidCheckpoint where there are only damaged ones.
    """
    taken = survey.take(target.root)
    found = list(taken.checkpoints)
    if not found and taken.unreadable:
        raise NoValidCheckpoint(target.name, len(taken.unreadable), why=taken.unreadable[0].problem)
    if target.at == "best":
        return _best(target, found)
    fitting = [info for info in found if _fits(info, target.at)]
    fitting.sort(key=lambda info: info.live)  # one set aside only where no live one has that step
    if not fitting:
        hint = f"holdfast ckpt ls --all {shlex.quote(target.name)}" if found else how_to_save(target)
        raise UsageError(f"{target.name} has no {_wanted(target.at)}", hint=hint)
    return fitting[-1]


def how_to_save(target: Target) -> str:
    """What makes the first checkpoint there; nothing can be said of a folder that is no run's."""
    return f"holdfast save {target.run.id} writes one while it runs" if target.run is not None else ""


def _fits(info: CheckpointInfo, at: At) -> bool:
    if at is None:
        return info.live
    return info.position == at if isinstance(at, Position) else info.step == at


def _wanted(at: At) -> str:
    if at is None:
        return "checkpoint"
    return f"checkpoint {at.term}-{at.sequence}" if isinstance(at, Position) else f"checkpoint at step {at}"


def _best(target: Target, found: list[CheckpointInfo]) -> CheckpointInfo:
    rule: dict[str, Any] | None = (
        runs.plan_of(target.run)["checkpoint"]["keep"].get("best") if target.run is not None else None
    )
    if not rule:
        hint = "set checkpoint.keep.best in the run file" if target.run is not None else "name a step"
        raise UsageError(f"{target.name} does not say what is best", hint=hint)
    fitting = [info for info in found if rule["metric"] in info.metrics]
    if not fitting:
        raise UsageError(
            f"no checkpoint of {target.name} has the metric {rule['metric']!r}",
            hint=f"run.log({rule['metric']}=…) in the script",
        )
    sign = 1 if rule["mode"] == "min" else -1
    return min(fitting, key=lambda info: sign * info.metrics[rule["metric"]])
