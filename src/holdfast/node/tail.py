"""Read what another process appends to a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20
LAST_BYTES = 16 * 1024


class Tail:
    """New whole lines that contain `word`, as objects; what is not a JSON object is skipped."""

    def __init__(self, path: Path, *, word: str = "") -> None:
        self._path, self._word = path, word.encode()
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Everything since the call before; a torn last line is left for next time."""
        while True:
            try:
                with self._path.open("rb") as file:
                    file.seek(self._offset)
                    raw = file.read(CHUNK_BYTES)
            except FileNotFoundError:
                return
            whole = raw[: raw.rfind(b"\n") + 1]
            if not whole and len(raw) < CHUNK_BYTES:
                return
            self._offset += len(whole) or len(raw)  # a line longer than a chunk is nobody's record
            yield from _objects(line for line in whole.splitlines() if self._word in line)


def _objects(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def last_event(path: Path, names: tuple[str, ...]) -> dict[str, Any] | None:
    """The last event of `path` if it is one of `names`, which end or follow what came before; None otherwise."""
    found = [line for line in _objects(iter(_end(path))) if line.get("event") in (*names, "restored")]
    return found[-1] if found and found[-1]["event"] in names else None


def _end(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LAST_BYTES))
            return file.read().splitlines()
    except OSError:
        return []


def newest(path: Path, key: str) -> dict[str, Any]:
    """The newest value of each name in the objects of `path` that have `key` and are no events, near its end."""
    merged: dict[str, Any] = {}
    for found in _objects(iter(_end(path))):
        if key in found and "event" not in found:
            merged.update(found)
    return merged
