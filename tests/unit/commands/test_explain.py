from __future__ import annotations

import json
from dataclasses import replace

import pytest

from holdfast.commands.explain import stories
from holdfast.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    Event,
    HangDetected,
    IntervalChosen,
    RestartScheduled,
    Restored,
    ResumeRequested,
    RunEnded,
    StacksCaptured,
)
from holdfast.plan import RestartPlan
from tests.unit.commands.golden import matches_golden
from tests.unit.commands.scene import NOW, holdfast, make_run, status, supervised

CHOSEN = IntervalChosen(
    t=NOW - 890,
    tier="disk",
    seconds=296.0,
    best_s=296.0,
    bound="",
    blocked_s=0.5,
    write_s=2.1,
    failure_s=86_100.0,
    restart_s=12.0,
    failures=1,
    trained_s=900.0,
    max_overhead_ratio=0.03,
)
TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 9, in <module>\nValueError: bad batch'


def started(number: int, at_s: float, step: int = 0) -> AttemptStarted:
    return AttemptStarted(t=at_s, attempt=number, pid=100 + number, start_ticks=1, log_offset=0, resume_step=step)


JOURNAL: tuple[Event, ...] = (
    started(1, NOW - 3000),
    Restored(t=NOW - 2990, attempt=1, step=0, term=1),
    CheckpointCommitted(t=NOW - 2000, step=100, term=1, sequence=1, size_bytes=1, reason="every 100 steps"),
    AttemptEnded(
        t=NOW - 1800,
        attempt=1,
        exit_class="killed",
        status=-9,
        step=150,
        committed_step=100,
        evidence=["ended by SIGKILL"],
    ),
    RestartScheduled(t=NOW - 1800, attempt=2, delay_s=0.0, reason="killed from outside", free=True),
    started(2, NOW - 1799, step=100),
    Restored(t=NOW - 1790, attempt=2, step=100, term=2, fell_back=["pack ab12 is damaged"], tier="mirror"),
    HangDetected(t=NOW - 900, attempt=2, silent_s=630.0, allowed_s=600.0, step=180, phase="running"),
    StacksCaptured(t=NOW - 890, attempt=2, path="stacks/attempt-0002.txt"),
    AttemptEnded(t=NOW - 880, attempt=2, exit_class="hang", status=-6, step=180, committed_step=100),
    RestartScheduled(t=NOW - 880, attempt=3, delay_s=4.0, reason="no progress yet"),
    started(3, NOW - 876, step=100),
    Restored(t=NOW - 870, attempt=3, step=100, term=3),
    AttemptEnded(
        t=NOW - 800,
        attempt=3,
        exit_class="code_error",
        status=1,
        step=181,
        committed_step=100,
        evidence=["ValueError: bad batch", "exit status 1"],
        traceback=TRACEBACK,
    ),
    RunEnded(t=NOW - 800, state="failed", exit_code=13, reason="3 attempts in a row without progress"),
)


def test_the_whole_story_in_plain_words() -> None:
    make_run(journal=JOURNAL, restart=RestartPlan(max_restarts=20, window_s=7200))

    said = holdfast("explain", "digits")

    assert (said.code, said.err) == (0, "")
    matches_golden("explain.txt", said.out.replace(str(make_run("probe").root.parent), "RUNS"))


def test_json_has_the_same_facts() -> None:
    make_run(journal=JOURNAL)

    told = json.loads(holdfast("explain", "digits", "--json").out)

    assert [attempt["started"]["attempt"] for attempt in told["attempts"]] == [1, 2, 3]
    assert told["attempts"][2]["ended"]["traceback"] == TRACEBACK
    assert told["attempts"][1]["stacks"] == "stacks/attempt-0002.txt"
    assert told["end"]["exit_code"] == 13
    assert told["budgets"]["restarts"] == {"used": 1, "allowed": 20}


def test_a_run_that_is_lost_is_not_told_as_going_on() -> None:
    make_run(journal=JOURNAL[:2])

    said = holdfast("explain", "digits").out

    assert "so far" not in said
    assert "digits is lost: no process of holdfast carries it any more\n" in said
    assert said.endswith("to do: holdfast resume digits\n")
    assert json.loads(holdfast("explain", "digits", "--json").out)["advice"] == ["holdfast resume digits"]


def test_the_interval_is_shown_with_every_term() -> None:
    first = replace(CHOSEN, seconds=100.0, best_s=100.0)
    run = make_run(journal=(*JOURNAL[:2], first, CHOSEN))

    with supervised(run, status()):
        matches_golden("explain-interval.txt", holdfast("explain", "digits").out)
    (told,) = json.loads(holdfast("explain", "digits", "--json").out)["intervals"]
    assert IntervalChosen(**told) == CHOSEN


@pytest.mark.parametrize(
    ("bound", "words"), [("overhead", "3 % of the time"), ("write", "finished before"), ("floor", "of no use")]
)
def test_what_bounds_an_interval_is_said(bound: str, words: str) -> None:
    make_run(journal=(*JOURNAL[:2], replace(CHOSEN, bound=bound)))

    assert words in holdfast("explain", "digits").out


def test_a_run_that_has_only_begun_needs_nothing_done() -> None:
    run = make_run(journal=JOURNAL[:2])

    with supervised(run, status()):
        said = holdfast("explain", "digits").out

    assert "so far, from the beginning" in said
    assert "to do:" not in said


def test_a_run_without_attempts_says_so() -> None:
    make_run()

    assert holdfast("explain", "digits").out == "digits: no attempt was started yet\n"


def test_events_before_the_first_attempt_belong_to_none() -> None:
    assert stories([Restored(attempt=1, step=0, term=1)]) == []


@pytest.mark.parametrize(("want", "said"), [({"step": 4584}, "step 4584"), ({"term": 2, "sequence": 7}, "2-7")])
def test_what_was_asked_for_is_told_until_it_is_restored(want: dict[str, int], said: str) -> None:
    journal = (ResumeRequested(t=NOW - 100, want=want), started(1, NOW - 95, step=4600))
    asked = make_run(journal=journal)
    restored = make_run("restored", journal=(*journal, Restored(t=NOW - 90, attempt=1, step=4580, term=3)))

    with supervised(asked, status()), supervised(restored, status()):
        assert f"so far, from {said}\n" in holdfast("explain", "digits").out
        assert "so far, from step 4580\n" in holdfast("explain", "restored").out
