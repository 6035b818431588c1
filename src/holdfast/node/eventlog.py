"""archiver.jsonl: one line an event, kept in memory while the disk is full."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

_KEPT_BYTES = 1 << 20


class EventLog:
    """Appends `{"t": unix seconds, "event": name, …}`; never raises: what cannot be written waits for the next line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting = b""

    def write(self, event: str, **fields: Any) -> None:
        """Append one line, after those that still wait. Past a megabyte of them the oldest are given up."""
        line = json.dumps({"t": time.time(), "event": event, **fields}, separators=(",", ":")) + "\n"
        self._waiting = _newest_lines(self._waiting + line.encode(), _KEPT_BYTES)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            self._waiting = self._waiting[os.write(descriptor, self._waiting) :]
        except OSError:
            return
        finally:
            os.close(descriptor)

    def last(self, event: str) -> dict[str, Any] | None:
        """The newest line of that name, by us or by one that lived before; None where there is none. Raises OSError."""
        mark = f'"event":{json.dumps(event)},'.encode()
        written = self._path.read_bytes() if self._path.exists() else b""
        for line in reversed((written + self._waiting).splitlines()):
            if mark in line:
                with contextlib.suppress(ValueError):  # a power cut may have left the beginning of a line, or zeros
                    return dict(json.loads(line))
        return None


def _newest_lines(raw: bytes, limit_bytes: int) -> bytes:
    if len(raw) <= limit_bytes:
        return raw
    return raw[raw.index(b"\n", len(raw) - limit_bytes) + 1 :]
