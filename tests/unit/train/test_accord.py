"""How ranks without a supervisor agree on a step."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.heartbeat import DECISIONS, Page, page_path
from holdfast.runs import RunDir, make_runtime
from holdfast.train.accord import Accord
from holdfast.train.setting import Setting


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[list[tuple[Accord, Page]]]:
    """Two ranks of a run of their own script, both at step 6."""
    run = RunDir(tmp_path / "digits")
    run.root.mkdir()
    make_runtime(run)
    made = []
    for rank in (0, 1):
        page = Page(page_path(run.runtime, rank))
        page.begin(pid=1, start_ticks=1, rank=rank, world=2, attempt=1)
        page.set(step=6)
        made.append((Accord(Setting(run=run, alone=True, rank=rank, world=2), page), page))
    yield made
    shutil.rmtree(run.runtime)


def asked(ranks: list[tuple[Accord, Page]], *words: str) -> list[tuple[int, ...]]:
    return [tuple(page.get(word) for word in words) for _, page in ranks]


@pytest.mark.parametrize("who", [0, 1])
def test_what_one_rank_wants_rank_0_asks_of_all(ranks: list[tuple[Accord, Page]], who: int) -> None:
    ranks[who][0].want()
    ranks[0][0].lead(step_s=1.0)

    assert asked(ranks, "save_number", "save_at_step") == [(1, 8), (1, 8)]


def test_an_open_request_is_not_repeated(ranks: list[tuple[Accord, Page]]) -> None:
    (first, page), _ = ranks
    for _ in range(3):
        first.want()
        first.lead(step_s=1.0)
    assert asked(ranks, "save_number") == [(1,), (1,)]

    page.set(save_handled=1)
    first.want()
    first.lead(step_s=1.0)
    assert asked(ranks, "save_number") == [(2,), (2,)]


def test_nothing_is_asked_before_every_rank_is_there(ranks: list[tuple[Accord, Page]]) -> None:
    (first, _), (_, second) = ranks
    second.set(magic=0)
    first.want()
    first.lead(step_s=1.0)
    assert asked(ranks, "save_number") == [(0,), (0,)]

    second.begin(pid=2, start_ticks=2, rank=1, world=2, attempt=1)
    first.lead(step_s=1.0)
    assert asked(ranks, "save_number") == [(1,), (1,)]


def test_a_stop_is_agreed_once(ranks: list[tuple[Accord, Page]]) -> None:
    (first, _), (_, second) = ranks
    second.set(stop_wanted=1)
    first.lead(step_s=1.0)
    second.set(step=7)
    first.lead(step_s=1.0)

    assert asked(ranks, "stop_at_step", "save_number") == [(8, 0), (8, 0)]


def test_with_a_supervisor_no_rank_asks(ranks: list[tuple[Accord, Page]]) -> None:
    _, page = ranks[0]
    run = RunDir(page.path.parent.parent)
    supervised = Accord(Setting(run=run, alone=False, rank=0, world=2), page)

    supervised.want()
    supervised.lead(step_s=1.0)

    assert (page.get("save_wanted"), page.get("save_number")) == (1, 0)


def never() -> None:
    raise AssertionError("a rank waited for what is told already")


def test_every_rank_saves_where_rank_0_does(ranks: list[tuple[Accord, Page]]) -> None:
    (first, _), (other, _) = ranks

    assert first.decides(12, 6, ready=True, meanwhile=never) is True
    assert first.decides(14, 7, ready=False, meanwhile=never) is False

    assert other.decides(12, 6, ready=False, meanwhile=never) is True
    assert other.decides(14, 7, ready=True, meanwhile=never) is False


def test_a_rank_waits_for_rank_0_to_come_to_the_boundary(ranks: list[tuple[Accord, Page]]) -> None:
    (first, _), (other, _) = ranks

    decided = other.decides(12, 6, ready=True, meanwhile=lambda: first.decides(12, 6, ready=True, meanwhile=never))

    assert decided is True


def test_a_rank_does_not_wait_for_a_rank_0_that_went_on(ranks: list[tuple[Accord, Page]]) -> None:
    (_, page), (other, _) = ranks
    page.set(step=7)

    assert other.decides(12, 6, ready=True, meanwhile=never) is False


def test_a_decision_that_later_ones_replaced_was_missed(ranks: list[tuple[Accord, Page]]) -> None:
    (first, _), (other, _) = ranks
    for boundary in range(12, 13 + DECISIONS):
        first.decides(boundary, 6, ready=True, meanwhile=never)

    assert other.decides(12, 6, ready=True, meanwhile=never) is False


def test_without_rank_0_on_this_machine_a_rank_goes_by_itself(ranks: list[tuple[Accord, Page]]) -> None:
    (_, page), (other, _) = ranks
    page.set(attempt=7)

    assert other.decides(12, 6, ready=True, meanwhile=never) is None


def ends(
    rank: tuple[Accord, Page],
    boundary: int = 12,
    *,
    mine: bool = False,
    timeout_s: float = 60.0,
    meanwhile: Any = never,
) -> bool:
    """What the rank finds at an end of training."""
    return rank[0].has_news(boundary, mine=mine, timeout_s=timeout_s, meanwhile=meanwhile)


def test_when_no_rank_has_news_none_saves(ranks: list[tuple[Accord, Page]]) -> None:
    first, other = ranks
    found: list[bool] = []

    assert ends(other, meanwhile=lambda: found.append(ends(first))) is False
    assert found == [False]


@pytest.mark.parametrize("who", [0, 1])
def test_what_is_new_in_one_rank_makes_all_save(ranks: list[tuple[Accord, Page]], who: int) -> None:
    first, other = ranks
    if who == 1:
        assert ends(other, mine=True) is True
        assert ends(first) is True
        return

    def arrives() -> None:
        assert ends(first, mine=True) is True
        first[0].decides(12, 6, ready=True, meanwhile=never)  # as every save does

    assert ends(other, meanwhile=arrives) is True


def test_each_end_of_training_is_asked_anew(ranks: list[tuple[Accord, Page]]) -> None:
    first, other = ranks
    assert ends(other, 12, meanwhile=lambda: ends(first, 12)) is False

    assert ends(other, 13, mine=True) is True
    assert ends(first, 13) is True


def test_a_rank_that_says_nothing_has_nothing_new(ranks: list[tuple[Accord, Page]]) -> None:
    first, other = ranks

    assert ends(first, timeout_s=0) is False
    assert ends(other) is False, "as rank 0 has decided"


@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_whose_neighbour_cannot_be_heard_saves(ranks: list[tuple[Accord, Page]], who: int) -> None:
    ranks[1 - who][1].set(attempt=7)

    assert ends(ranks[who]) is True
