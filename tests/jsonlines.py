"""Logs of JSON lines, which somebody else may be writing to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole; none where there is no file yet. One that is being written is seen in half."""
    raw = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in raw.splitlines(keepends=True) if line.endswith(b"\n")]


def events(path: Path, name: str) -> list[dict[str, Any]]:
    """Those of that event."""
    return [line for line in read(path) if line.get("event") == name]
