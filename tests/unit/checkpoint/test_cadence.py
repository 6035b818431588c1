"""How often a state is copied into memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint.cadence import MOST_STEPS, Pace, due, power_of_two
from holdfast.plan import Memory

AUTO, OFF = Memory(), Memory(auto=False)
STEPS, SECONDS = Memory(auto=False, steps=3), Memory(auto=False, seconds=30.0)


def settled(copy_s: float, step_s: float, memory: Memory = AUTO) -> Pace:
    """After many steps and copies of the same length."""
    return Pace().after_step(step_s).after_copy(copy_s, memory, 0.03)


@pytest.mark.parametrize(("copy_s", "expected"), [(0.001, 1), (0.003, 1), (0.004, 2), (0.1, 64), (60.0, 32768)])
def test_auto_takes_the_smallest_power_of_two_within_the_overhead(copy_s: float, expected: int) -> None:
    assert settled(copy_s, 0.1).steps == expected


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3))
def test_the_overhead_is_kept_and_not_by_more_than_a_factor_of_two(copy_s: float, step_s: float) -> None:
    steps = settled(copy_s, step_s).steps

    assert steps == MOST_STEPS or copy_s / (steps * step_s) <= 0.03 * 1.000001
    assert steps == 1 or copy_s / (steps // 2 * step_s) > 0.03 * 0.999999


def test_the_first_copy_is_made_at_once_and_a_slow_one_is_forgotten() -> None:
    assert Pace().steps == 1
    assert Pace().after_copy(9.0, AUTO, 0.03).steps == 1, "how long a step takes is not known yet"
    pace = settled(1.0, 0.1)
    for _ in range(20):
        pace = pace.after_copy(0.001, AUTO, 0.03)
    assert pace.steps == 1


def test_seconds_become_steps_where_several_ranks_must_agree() -> None:
    assert settled(0.001, 0.1, SECONDS).steps == 512
    assert due(SECONDS, step=512, agreed_steps=512, passed_s=0.0, alone=False)
    assert not due(SECONDS, step=513, agreed_steps=512, passed_s=99.0, alone=False)


def test_when_a_copy_is_due() -> None:
    assert [step for step in range(1, 9) if due(STEPS, step=step, agreed_steps=1, passed_s=0.0, alone=True)] == [3, 6]
    assert [s for s in (29.0, 30.0) if due(SECONDS, step=7, agreed_steps=1, passed_s=s, alone=True)] == [30.0]
    assert [step for step in range(1, 9) if due(AUTO, step=step, agreed_steps=4, passed_s=0.0, alone=True)] == [4, 8]
    assert not any(due(OFF, step=step, agreed_steps=1, passed_s=99.0, alone=True) for step in range(1, 9))


def test_sets_of_ranks_nest() -> None:
    assert [power_of_two(at_least) for at_least in (0.0, 1.0, 1.1, 4.0, 5.0)] == [1, 1, 2, 4, 8]
