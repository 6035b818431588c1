"""The table of a link, asked about every moment."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.link import states
from holdfast.link.diagnosis import Cause, Why
from holdfast.link.states import Do, Link, State, tick

LOST, DENIED = Why(Cause.LOST, "cut"), Why(Cause.AUTHENTICATION, "no")


def up(now_s: float = 0.0, trip_s: float = 0.05) -> Link:
    link, _ = tick(states.want(Link(), now_s), now_s)
    return states.answered(states.opened(link, now_s), now_s + trip_s)


def run(link: Link, from_s: float, to_s: float, every_s: float = 0.1) -> tuple[Link, list[tuple[float, Do]]]:
    """Tick through a stretch of time in which nothing comes."""
    done = []
    for number in range(int((to_s - from_s) / every_s) + 1):
        now_s = from_s + number * every_s
        link, actions = tick(link, now_s)
        done += [(now_s, action) for action in actions]
    return link, done


def test_nothing_is_connected_that_nobody_wants() -> None:
    assert run(Link(), 0, 1000)[1] == []


def test_wanted_it_connects_at_once_and_gives_up_after_a_while() -> None:
    link, done = run(states.want(Link(), 0), 0, 40)

    assert [action for _, action in done] == [Do.CONNECT, Do.HANG_UP]
    assert (link.state, done[1][0]) == (State.DEAD, pytest.approx(30, abs=0.3))


@pytest.mark.parametrize(("busy", "within_s"), [(True, 5 + 1.5 + 3), (False, 15 + 1.5 + 3)])
def test_silence_is_death_within_a_bound(busy: bool, within_s: float) -> None:
    link = replace(up(), busy=busy)
    dead, done = run(link, 0, within_s + 1)

    assert [action for _, action in done] == [Do.PING, Do.HANG_UP]
    assert dead.state is State.DEAD
    assert done[1][0] <= within_s + 0.5
    assert dead.why is not None
    assert "nothing came for" in dead.why.sentence


def test_a_ping_that_was_sent_again_on_its_way_counts_as_lost() -> None:
    link = up()
    for trip_s, lost in ((0.05, False), (0.2, False), (0.3, True), (0.1, False)):
        before = link.loss_ratio
        link = states.answered(states.doubted(link, 10)[0], 10 + trip_s)
        assert (link.loss_ratio > before) is lost
    assert 0 < link.loss_ratio < 1 / 16


def test_who_comes_asks_a_link_that_is_silent_and_not_one_that_was_just_heard() -> None:
    asked, done = states.sought(up(), 2)

    assert states.sought(up(), 1)[1] == ()
    assert done == (Do.PING,)
    assert states.sought(asked, 2.1)[1] == ()


def test_a_ping_that_was_lost_among_other_bytes_is_not_waited_for_any_more() -> None:
    link, _ = states.doubted(up(), 1)
    link = states.missed(states.heard(link, 31))
    link, done = run(link, 31, 31 + 10)

    assert (link.state, done) == (State.UP, [])


def test_a_ping_behind_bytes_that_move_is_not_silence_and_no_measure_of_the_way() -> None:
    before = up()
    link = states.doubted(before, 1)[0]
    for second in range(1, 20):
        link, done = run(states.moved(link, second), second, second + 1)
        assert (link.state, done) == (State.UP, [])
    after = states.answered(link, 20)
    assert (after.trip_s, after.patience_s, after.asked_s) == (before.trip_s, before.patience_s, None)
    assert run(states.doubted(after, 20)[0], 20, 26)[0].state is State.DEAD
    measured = states.answered(states.doubted(after, 20)[0], 20.1)
    assert measured.trip_s > before.trip_s


def test_a_way_that_resumes_by_itself_is_suspect_and_not_given_up() -> None:
    before = replace(up(), resumes=True)
    link, done = run(states.doubted(before, 1)[0], 1, 500)
    assert (link.state, done) == (State.SUSPECT, [])

    back = states.answered(link, 500)
    assert (back.state, back.patience_s) == (State.UP, before.patience_s)


def test_a_far_machine_is_given_more_time() -> None:
    link = states.opened(Link(state=State.CONNECTING, wanted=True), 0)
    link = states.answered(states.doubted(link, 0)[0], 0.6)
    asked, _ = states.doubted(link, 10)

    assert run(asked, 10, 15)[0].state is State.UP
    assert run(asked, 10, 17)[0].state is State.SUSPECT


def test_any_byte_is_a_sign_of_life() -> None:
    suspect, _ = run(states.doubted(up(), 1)[0], 1, 3)
    assert suspect.state is State.SUSPECT

    assert states.heard(suspect, 3).state is State.UP


def test_after_sleep_it_is_asked_at_once() -> None:
    asked, actions = states.uprooted(up(), 100)
    assert actions == (Do.PING,)
    assert run(asked, 100, 104)[0].state in (State.SUSPECT, State.DEAD)
    waiting = states.gone(up(), 5, LOST, 1.0)
    assert tick(states.uprooted(waiting, 5.001)[0], 5.001)[1] == (Do.CONNECT,)


@pytest.mark.parametrize("state", [State.DOWN, State.CONNECTING])
def test_in_another_network_pauses_between_attempts_begin_anew(state: State) -> None:
    tried = replace(up(), state=state, failures=9)

    again = states.gone(states.uprooted(tried, 10)[0], 11, LOST, 1.0)

    assert again.due_s == 11 + states.FIRST_DELAY_S
    assert states.gone(states.doubted(tried, 10)[0], 11, LOST, 1.0).due_s == 11 + states.LONGEST_DELAY_S


def test_a_ping_that_waits_while_nobody_looks_is_no_silence_of_the_other_end() -> None:
    before = up()
    link = states.stood_still(states.doubted(before, 10)[0], 30)
    assert tick(link, 30.1) == (link, ())
    assert run(link, 30, 35.5)[0].state is State.DEAD
    assert states.answered(link, 30.2).trip_s == before.trip_s  # of that one nobody knows how long it took
    assert states.stood_still(before, 30) == before


def test_what_a_person_must_mend_is_not_tried_again() -> None:
    link = states.gone(up(), 5, DENIED, 1.0)

    assert run(link, 5, 5000)[1] == []
    assert link.state is State.NEEDS_AUTHENTICATION
    assert tick(states.want(link, 6), 6)[1] == (Do.CONNECT,)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_a_way_that_is_closed_is_tried_for_ever_and_ever_less_often(chances: list[float]) -> None:
    link, now_s = states.want(Link(), 0), 0.0
    for number, chance in enumerate(chances):
        link, actions = tick(link, max(now_s, link.due_s))
        now_s = max(now_s, link.due_s)
        assert actions == (Do.CONNECT,)
        link = states.gone(link, now_s, LOST, chance)
        assert 0 <= link.due_s - now_s <= min(60.0, 0.2 * 2**number) + 1e-6
    assert link.state is State.DOWN


def test_nobody_needs_it_any_more() -> None:
    dropped, actions = states.drop(up(), 9)
    assert actions == (Do.HANG_UP,)
    assert run(states.gone(dropped, 10, LOST, 0.0), 10, 100)[1] == []


def test_a_program_that_waits_shortens_a_long_pause_and_no_more() -> None:
    waiting = replace(states.gone(up(), 5, LOST, 1.0), due_s=65.0)

    assert states.hurried(waiting, 6).due_s == 10.0
    assert states.hurried(waiting, 20).due_s == 20.0
    assert states.hurried(replace(waiting, due_s=7.0), 6).due_s == 7.0


def test_a_person_who_is_asked_has_more_time_than_a_machine() -> None:
    connecting, _ = tick(states.want(Link(), 0), 0)
    asked = states.asked(connecting, 1, asking=True)
    assert run(asked, 1, 100)[1] == []
    assert [action for _, action in run(asked, 1, 130)[1]] == [Do.HANG_UP]
    answered = states.asked(asked, 100, asking=False)
    assert run(answered, 100, 129)[1] == []
    assert not states.gone(asked, 5, DENIED, 1.0).asking


def test_a_refusal_counts_from_when_it_was_asked_for() -> None:
    refused = states.gone(up(), 5, DENIED, 1.0)

    assert states.refused_since(refused, 5)
    assert not states.refused_since(refused, 5.1)
    assert not states.refused_since(up(), 0)
