"""The loss plot of the demo."""

from __future__ import annotations

from pathlib import Path

from bench.attempts import Attempt
from bench.plot import plot


def test_a_png_is_drawn_even_when_an_attempt_did_no_step(tmp_path: Path) -> None:
    first = Attempt(1, 0, [1, 2, 3], [10.0, 11.0, 12.0], [0.9, 0.5, 0.4])
    second = Attempt(3, 2, [3, 4], [15.0, 16.0], [0.4, 0.3])

    plot(tmp_path / "loss.png", uninterrupted=first, killed=[first, Attempt(2), second], kills_s=[12.5])

    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
