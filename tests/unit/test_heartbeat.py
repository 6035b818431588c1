"""The step at which ranks meet, and how they come to agree on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from holdfast.heartbeat import Beat, Handlers, Outcome, Page, Phase, meeting_step


def beat(step: int, first_step: int = 0) -> Beat:
    words: dict[str, Any] = dict.fromkeys(Beat.__slots__, 0)
    words |= {"step": step, "first_step": first_step, "phase": Phase.RUNNING}
    return Beat(**words | {"handlers": Handlers.NONE, "outcome": Outcome.NONE})


@pytest.mark.parametrize(
    ("steps", "step_s", "expected"),
    [
        ([7], 0.001, 8),  # one rank is told before its next boundary
        ([7, 9], 10.0, 11),  # the newest, one more, and one ahead for the time of telling
        ([7, 9], 0.01, 15),
        ([7, 9], 1e-9, 1010),  # bounded, however quick the steps
        ([7, 9], 0.0, 11),  # how long a step takes is not known yet
    ],
)
def test_no_rank_can_have_passed_the_step(steps: list[int], step_s: float, expected: int) -> None:
    assert meeting_step([beat(step) for step in steps], step_s) == expected


def test_a_page_keeps_the_other_half_when_a_new_attempt_begins(tmp_path: Path) -> None:
    page = Page(tmp_path / "page")
    page.set(save_number=4, save_at_step=9, save_wanted=5)

    page.begin(pid=1, start_ticks=1, rank=0, world=2, attempt=2)

    found = page.read()
    assert found is not None
    assert (found.save_wanted, page.get("save_number"), page.get("save_at_step")) == (0, 4, 9)
    page.close()
