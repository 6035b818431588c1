"""Whole outputs kept as files: `HOLDFAST_WRITE_GOLDEN=1 pytest …` writes them, the diff is then read by a person."""

from __future__ import annotations

import os
from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[2] / "golden" / "cli"


def matches_golden(name: str, text: str) -> None:
    """Assert that `text` is what golden file `name` holds."""
    path = _FOLDER / name
    if os.environ.get("HOLDFAST_WRITE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text
