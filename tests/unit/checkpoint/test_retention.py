"""What retention keeps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.retention import Candidate, choose
from holdfast.plan import Best, Keep


def found(*losses: float | None, damaged: tuple[int, ...] = ()) -> list[Candidate]:
    return [
        Candidate(position=Position(1, n), metrics={} if loss is None else {"loss": loss}, whole=n not in damaged)
        for n, loss in enumerate(losses, 1)
    ]


def kept(candidates: list[Candidate], keep: Keep) -> list[int]:
    return sorted(position.sequence for position in choose(candidates, keep))


def test_the_last_are_kept() -> None:
    assert kept(found(1, 2, 3, 4, 5), Keep(last=3)) == [3, 4, 5]


def test_there_are_always_two_to_fall_back_to() -> None:
    assert kept(found(1, 2, 3), Keep(last=1)) == [2, 3]


def test_the_best_are_kept_too() -> None:
    keep = Keep(last=2, best=Best(metric="loss", mode="min", count=2))

    assert kept(found(0.5, 0.1, 0.9, None, 0.8, 0.7), keep) == [1, 2, 5, 6]


def test_the_best_may_be_the_highest_and_of_equals_the_newer() -> None:
    keep = Keep(last=2, best=Best(metric="loss", mode="max"))

    assert kept(found(0.9, 0.9, 0.1, 0.2, 0.3), keep) == [2, 4, 5]


def test_a_damaged_one_does_not_count_but_the_newest_stays_whatever_it_is() -> None:
    assert kept(found(1, 2, 3, 4, damaged=(3, 4)), Keep(last=2)) == [1, 2, 4]


def test_an_unknown_metric_keeps_the_last_only() -> None:
    assert kept(found(None, None, None), Keep(last=2, best=Best(metric="accuracy"))) == [2, 3]


@given(st.lists(st.booleans(), min_size=1), st.integers(1, 5))
def test_the_newest_and_two_whole_ones_always_remain(wholes: list[bool], last: int) -> None:
    candidates = [Candidate(position=Position(1, n), whole=whole) for n, whole in enumerate(wholes)]

    remaining = choose(candidates, Keep(last=last))

    assert candidates[-1].position in remaining
    assert sum(one.whole for one in candidates if one.position in remaining) >= min(2, sum(wholes))
