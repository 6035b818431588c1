"""What users copy works: each example runs to its end under holdfast."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.e2e.box import ENDED, Box

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.e2e
@pytest.mark.parametrize(("name", "env"), [("digits", "EPOCHS=1"), ("stdlib_gpt", "STEPS=2")])
def test_an_example_runs_to_its_end(box: Box, name: str, env: str) -> None:
    python = f"environment.python={sys.executable}"

    run = box.start("-f", str(EXAMPLES / name / "holdfast.yaml"), "--env", env, "--set", python)

    assert box.wait_for(run, *ENDED, within_s=90)["state"] == "succeeded", box.tail(run)
