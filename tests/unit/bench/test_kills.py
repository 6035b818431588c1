"""The judge of the kill harness finds what a bad recovery leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.kills import Broken, Reference, judge
from bench.live import LiveRun

LOSSES = {1: "0.9", 2: "0.8", 3: "0.7"}
REFERENCE = Reference("cafe", LOSSES, seconds=1.0)
GOOD = [(1, 1), (2, 1), (2, 2), (3, 2)]  # (step, attempt): step 2 was done again


def left_behind(
    folder: Path, done: list[tuple[int, int]], *, weights: str = "cafe", wrong: int = 0, began: int = 1
) -> LiveRun:
    """A run directory as an ended run leaves it.

    wrong: a step whose last repetition came to another loss. began: the step that attempt 2 continued from.
    """
    losses = [0.123 if step == wrong and attempt == 2 else float(LOSSES[step]) for step, attempt in done]
    restored = [{"event": "restored", "attempt": 2, "step": began, "tier": "memory", "fell_back": []}]
    records = restored + [
        {"t": 1.0, "step": step, "epoch": 0, "attempt": attempt, "loss": loss}
        for (step, attempt), loss in zip(done, losses, strict=True)
    ]
    printed = [f"step {step} loss {loss!r}" for (step, _), loss in zip(done, losses, strict=True)]
    (folder / "records").mkdir()
    (folder / "records" / "rank-00000.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "output.log").write_text("\n".join([*printed, f"final weights sha256 {weights}\n"]))
    return LiveRun("unseen", folder, folder)


def problems(run: LiveRun, exit_code: int = 0) -> list[str]:
    result = Broken(run.id)
    judge(run, result, REFERENCE, exit_code=exit_code, steps_total=3)
    return result.problems


def test_a_run_that_repeated_a_step_alike_is_exact(tmp_path: Path) -> None:
    assert [] == problems(left_behind(tmp_path, GOOD))


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"done": GOOD[:3]}, "no record of 1 steps"),
        ({"done": GOOD, "weights": "beef"}, "final weights beef"),
        ({"done": GOOD, "wrong": 2}, "step 2 logged [0.123, 0.8]"),
        ({"done": GOOD, "began": 0}, "attempt from step 0 after step 2 was reached"),
        ({"done": GOOD, "wrong": 3}, "1 steps printed otherwise"),
    ],
)
def test_harm_is_found(tmp_path: Path, left: dict[str, object], said: str) -> None:
    assert any(said in problem for problem in problems(left_behind(tmp_path, **left)))  # type: ignore[arg-type]


def test_an_exit_code_other_than_0_is_found(tmp_path: Path) -> None:
    assert ["exit code 13"] == problems(left_behind(tmp_path, GOOD), exit_code=13)
