"""The verdict of the safety harness on what was loaded."""

from __future__ import annotations

import pytest

from bench.judge import Outcome, Verdict, judge, merge


def loaded(step: int, **found: int) -> Outcome:
    return Outcome(claimed=step, found={int(name[1:]): count for name, count in found.items()} or {step: 10})


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (loaded(3), Verdict.RECOVERED),
        (loaded(4), Verdict.RECOVERED),  # begun, whole, not yet acknowledged
        (loaded(2), Verdict.LOST),
        (Outcome(), Verdict.LOST),
        (Outcome(claimed=0), Verdict.LOST),
        (loaded(3, s3=5, s2=5), Verdict.TORN),
        (loaded(3, s2=10), Verdict.TORN),  # what it says and what it holds differ
        (loaded(3, s3=9, s900=1), Verdict.SILENT),
        (Outcome(claimed=3, found={3: 9, -1: 1}), Verdict.SILENT),
        (Outcome(error="EOFError"), Verdict.UNRECOVERABLE),
    ],
)
def test_after_a_fault_that_damages_nothing(outcome: Outcome, verdict: Verdict) -> None:
    assert judge(outcome, saved=[1, 2, 3], begun=4, damaged=False)[0] is verdict


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome(error="damaged"), Verdict.TOLD),
        (Outcome(claimed=2, found={2: 10}, said=["3 is damaged"]), Verdict.TOLD),
        (loaded(2), Verdict.LOST),
        (Outcome(claimed=3, found={3: 9, -1: 1}, said=["?"]), Verdict.SILENT),
    ],
)
def test_after_damage_saying_so_is_enough(outcome: Outcome, verdict: Verdict) -> None:
    assert judge(outcome, saved=[1, 2, 3], begun=4, damaged=True)[0] is verdict


def test_nothing_to_load_is_right_when_nothing_was_acknowledged() -> None:
    assert judge(Outcome(), saved=[], begun=1, damaged=False)[0] is Verdict.RECOVERED


def test_ranks_of_two_steps_are_torn() -> None:
    both = merge([loaded(2), loaded(3)])

    assert judge(both, saved=[2], begun=3, damaged=False)[0] is Verdict.TORN
