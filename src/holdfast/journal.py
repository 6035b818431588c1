"""The journal file: one event a line, durable before anything is done because of it.

A crash may leave half a line at the end. Readers leave it for next time; the next writer cuts it off, since nothing
was ever done because of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from holdfast.events import Event, from_json, to_json


class Journal:
    """Append events to `path`, which is created 0600. One writer at a time; the caller sees to that."""

    def __init__(self, path: Path) -> None:
        """Open, cut off a torn last line, count the lines. Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        whole = path.read_bytes()
        self._size = whole.rfind(b"\n") + 1
        os.ftruncate(self._file, self._size)
        self._number = whole.count(b"\n")
        self._dirty = False

    def append(self, event: Event, *, durable: bool = True) -> None:
        """Write one line, and make it durable unless the caller will `sync` before it acts. Raises OSError.

        After an error the file is as it was, so the same event can be appended again.
        """
        line = json.dumps(to_json(event, number=self._number), separators=(",", ":")).encode() + b"\n"
        try:
            if os.write(self._file, line) != len(line):
                raise OSError("short write")
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)
        self._number += 1
        self._dirty = True
        if durable:
            self.sync()

    def sync(self) -> None:
        """Make every line durable. Raises OSError."""
        if self._dirty:
            os.fsync(self._file)
            self._dirty = False

    def close(self) -> None:
        """Make durable and close."""
        self.sync()
        os.close(self._file)


def read(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Events from byte `offset` on, and the offset at which to go on; a torn last line is left for next time.

    Lines of a newer version that this one does not know are skipped. Raises OSError, ValueError on a damaged line.
    """
    with path.open("rb") as file:
        file.seek(offset)
        raw = file.read()
    whole = raw[: raw.rfind(b"\n") + 1]
    events = []
    for number, line in enumerate(whole.splitlines()):
        try:
            event = from_json(json.loads(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: line {number} after byte {offset} is damaged: {error}") from error
        if event is not None:
            events.append(event)
    return events, offset + len(whole)


def page(path: Path, offset: int, *, limit_bytes: int = 1 << 20) -> dict[str, Any]:
    """Whole lines from byte `offset` on, as they are, and the offset `next` to go on at. Raises OSError, ValueError."""
    with path.open("rb") as file:
        file.seek(offset)
        raw = file.read(limit_bytes)
    whole = raw[: raw.rfind(b"\n") + 1]
    return {"events": [json.loads(line) for line in whole.splitlines()], "next": offset + len(whole)}
