"""Pins: files that keep a checkpoint whatever the rules say, until they are taken away.

The name alone protects, `pins/TTTTTT-SSSSSSSS.json`: a damaged pin is a pin.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from holdfast.checkpoint import canonical
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lineage import Position
from holdfast.errors import UsageError
from holdfast.fsio import DISK, Disk, get

REASON_CHARACTERS = 1000
_LIMIT_BYTES = 16 << 10
_NAME = re.compile(r"(\d{6,15})-(\d{8,15})\.json\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pin:
    """Why and when (unix seconds) a checkpoint was pinned; both empty when the file is damaged."""

    reason: str = ""
    time_s: float = 0.0


def pinned(root: Path, disk: Disk = DISK) -> set[Position]:
    """The positions that are pinned, there or not. Raises OSError."""
    names = (_NAME.match(name) for name in disk.list(root / "pins"))
    return {Position(int(found[1]), int(found[2])) for found in names if found}


def read(root: Path, position: Position, disk: Disk = DISK) -> Pin | None:
    """The pin of a checkpoint, None when it has none. Raises OSError."""
    path = root / "pins" / _name(position)
    if path.name not in disk.list(path.parent):
        return None
    try:
        found = canonical.decode_checked(get(disk, path, limit_bytes=_LIMIT_BYTES), f"pin {path.stem}")
    except (Damaged, OverflowError):
        return Pin()
    reason, time_s = found.get("reason"), found.get("time_s")
    if not isinstance(reason, str) or not isinstance(time_s, (int, float)):
        return Pin()
    return Pin(reason, float(time_s))


def pin(into: Folder, position: Position, reason: str, now_s: float) -> None:
    """Pin a checkpoint, durably; again gives it another reason. Raises OSError."""
    fields = {**position.to_json(), "reason": reason[:REASON_CHARACTERS], "time_s": now_s}
    into.put(f"pins/{_name(position)}", canonical.encode_checked(fields), replace=True)


def unpin(into: Folder, position: Position) -> None:
    """Take the pin away, durably. Raises UsageError when there is none, OSError."""
    path = into.root / "pins" / _name(position)
    if path.name not in into.disk.list(path.parent):
        raise UsageError(f"the checkpoint of term {position.term}, sequence {position.sequence} is not pinned")
    into.disk.remove(path)
    into.disk.sync_folder(path.parent)


def _name(position: Position) -> str:
    return f"{position.term:06d}-{position.sequence:08d}.json"
