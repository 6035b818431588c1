"""Which checkpoints a `ckpt` verb speaks of, and how they are called."""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import Callback, RunArgument, chosen
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.checkpoint.survey import CheckpointInfo
    from holdfast.checkpoint.target import Target

METAVAR = "RUN|FOLDER[@STEP|@best]"


def name_of(info: CheckpointInfo) -> str:
    """Term and sequence, as in the manifest's file name and behind an @."""
    return f"{info.term}-{info.sequence}"


def mirrored(asked: Target) -> frozenset[tuple[int, int]]:
    """Term and sequence of what a run's mirror holds, as its archiver last saw it."""
    try:
        held = json.loads(asked.run.mirror.read_bytes())["held"] if asked.run is not None else []
        return frozenset((int(term), int(sequence)) for term, sequence in held)
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def tier_of(info: CheckpointInfo, elsewhere: Container[tuple[int, int]]) -> str:
    """`disk`, whichever that is, or `disk+mirror`."""
    return "disk+mirror" if (info.term, info.sequence) in elsewhere else "disk"


def facts(info: CheckpointInfo, elsewhere: Container[tuple[int, int]] = ()) -> dict[str, Any]:
    """One entry of `ckpt ls --json`."""
    names = ("term", "sequence", "step", "epoch", "time_s", "reason", "metrics", "world", "live", "pinned", "name")
    sizes = {"size_bytes": info.size_bytes, "added_bytes": info.added_bytes}
    where = {"tier": tier_of(info, elsewhere), "complete": is_complete(info), "path": str(info.path)}
    return {"checkpoint": name_of(info), **{name: getattr(info, name) for name in names}, **sizes, **where}


def is_complete(info: CheckpointInfo) -> bool:
    """Whether all its packs are there at full length. Their bytes were compared at the commit."""
    from holdfast.checkpoint.collect import is_complete
    from holdfast.checkpoint.folder import Folder

    return is_complete(Folder(info.path.parents[1]), info)


def target(text: str) -> Target:
    """RUN[@…] or FOLDER[@…]. Raises RunNotFound, UsageError."""
    from holdfast.checkpoint.target import parse

    return parse(text)


def target_argument(name: str = "target", **options: Any) -> Callable[[Callback], Callback]:
    """A RUN or FOLDER, perhaps with @ and which of its checkpoints; becomes a `Target`."""
    options = {"metavar": METAVAR, **options}

    def decorate(callback: Callback) -> Callback:
        return click.argument(name, type=target, cls=RunArgument, **options)(callback)

    return decorate


def whole(asked: Target) -> Target:
    """`asked`, for a verb that is about all of its checkpoints. Raises UsageError where one of them was named."""
    if asked.at is None:
        return asked
    raise UsageError(f"{asked.name}: this is about all of its checkpoints, not one", hint="leave out what follows @")


def meant(given: Target | None) -> Target:
    """The target given, else the only live run, else the newest. Raises UsageError."""
    return given if given is not None else target(str(chosen(None).root))
