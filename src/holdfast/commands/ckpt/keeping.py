"""What changes a checkpoint folder: its archiver while the run is live, else ourselves under the lock of the folder."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from holdfast.errors import HoldfastError, UsageError

if TYPE_CHECKING:
    from holdfast.checkpoint.folder import Folder
    from holdfast.checkpoint.survey import CheckpointInfo
    from holdfast.checkpoint.target import Target
    from holdfast.plan import Keep

_ANSWER_S = 600.0  # a save in progress comes first


def pin(target: Target, info: CheckpointInfo, reason: str) -> None:
    """Keep it whatever the rules say. Raises UsageError, OSError."""

    def ourselves(folder: Folder) -> None:
        from holdfast.checkpoint import collect

        collect.pin(folder, info.position, reason, time.time())

    _do(target, {"op": "pin", **info.position.to_json(), "reason": reason}, ourselves)


def unpin(target: Target, info: CheckpointInfo) -> None:
    """Leave it to the rules again. Raises UsageError when it is not pinned, OSError."""

    def ourselves(folder: Folder) -> None:
        from holdfast.checkpoint import pins

        pins.unpin(folder, info.position)

    _do(target, {"op": "unpin", **info.position.to_json()}, ourselves)


def remove(target: Target, info: CheckpointInfo) -> None:
    """Remove one. Raises UsageError when it is pinned, being read, or one that a resume needs; OSError."""

    def ourselves(folder: Folder) -> None:
        from holdfast.checkpoint import collect

        collect.remove(folder, info.position)

    _do(target, {"op": "remove", **info.position.to_json()}, ourselves)


def prunable(target: Target, than_s: float, keep_last: int) -> list[CheckpointInfo]:
    """Checkpoints older than the unix time `than_s` that no pin, rule for the best or need of a resume holds."""
    from holdfast.checkpoint import collect
    from holdfast.checkpoint.folder import Folder
    from holdfast.checkpoint.target import every

    old = collect.prune(Folder(target.root), _keep(target), than_s=than_s, dry_run=True)
    held = {info.position for info in [info for info in every(target) if info.live][-keep_last:]}
    return [info for info in old if info.position not in held]


def _keep(target: Target) -> Keep:
    from holdfast.plan import Keep, Plan
    from holdfast.runs import plan_of

    return Plan.from_json(plan_of(target.run)).checkpoint.keep if target.run is not None else Keep()


def _do(target: Target, request: dict[str, Any], ourselves: Callable[[Folder], None]) -> None:
    if target.run is not None and _asked(target, request):
        return
    with _owned(target) as folder:
        ourselves(folder)


def _asked(target: Target, request: dict[str, Any]) -> bool:
    """Whether the run's archiver did it; False when none listens. Raises what it refused as the error it is."""
    from holdfast.process import request as ask
    from holdfast.runs import is_ours

    assert target.run is not None
    if not is_ours(target.run.runtime):
        return False
    try:
        answer, _ = ask(target.run.runtime / "archiver.sock", request, timeout_s=_ANSWER_S)
    except (FileNotFoundError, ConnectionError):
        return False
    if not answer.get("ok"):
        kind = UsageError if answer.get("exit_code") == UsageError.exit_code else HoldfastError
        raise kind(str(answer.get("error", "refused")), hint=str(answer.get("hint", "")))
    return True


@contextmanager
def _owned(target: Target) -> Iterator[Folder]:
    """The folder, ours alone meanwhile. Raises FolderInUse where a live run writes to it."""
    from holdfast.checkpoint.folder import Folder, FolderInUse

    try:
        with Folder(target.root).owned() as folder:
            yield folder
    except FolderInUse as error:
        raise FolderInUse(f"a live run writes to {target.root}", hint="name the run in place of its folder") from error


def must_name_one(target: Target) -> None:
    """Raise UsageError when `target` does not say which checkpoint."""
    if target.at is None:
        raise UsageError(
            f"{target.name}: which of its checkpoints?",
            hint=f"holdfast ckpt ls {shlex.quote(target.name)}, then {shlex.quote(target.name)}@STEP",
        )


def freed_bytes(infos: Sequence[CheckpointInfo], others: Sequence[CheckpointInfo]) -> int:
    """Bytes of chunks that only `infos` need, not `others`. Pure."""
    held = {(name, offset) for info in others for name, places in info.needs.items() for offset in places}
    gone = {
        (name, offset): size for info in infos for name, places in info.needs.items() for offset, size in places.items()
    }
    return sum(size for place, size in gone.items() if place not in held)
