"""What a test needs of the machine: skipped with the reason where it is missing, a failure where CI is set."""

from __future__ import annotations

import os

import pytest


def need(condition: object, reason: str) -> None:
    """Go on only if `condition` holds."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must have it: {reason}")
    pytest.skip(reason)
