"""Names of checkpoints."""

from __future__ import annotations

import pytest

from holdfast.checkpoint.naming import render

HEAD = {"step": 1200, "epoch": 3, "metrics": {"loss": 0.25, "note": "nan"}, "time_s": 1769860800.0}


@pytest.mark.parametrize(
    ("template", "metric", "expected"),
    [
        ("{project}-{step:08d}", None, "digits-00001200"),
        ("{epoch}/{metric:.3f}", "loss", "3/0.250"),
        ("{metric:.3f} {metric}", "accuracy", "- -"),
        ("{metric:.3f}", "note", "-"),
        ("at {time}{{}}", None, "at 20260131T120000Z{}"),
        ("plain", None, "plain"),
    ],
)
def test_fields_are_filled_in_and_what_is_missing_is_a_dash(template: str, metric: str | None, expected: str) -> None:
    assert render(template, "digits", HEAD, metric) == expected
