"""The table, row by row."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from holdfast import events as ev
from holdfast.goodput import Failures
from holdfast.lifecycle import (
    AskStop,
    Classify,
    Emit,
    Finish,
    KillAttempt,
    Prepare,
    StartAttempt,
    decide,
    fold,
    segment_is_over,
)
from holdfast.plan import RestartPlan, RestartRule
from holdfast.state import Policy, RunState, State

CREATED = ev.RunCreated(t=0.0, run="digits")
BEGUN = (CREATED, ev.SupervisorStarted(t=1.0, pid=1, boot="a"))


def policy(**fields: Any) -> Policy:
    return Policy(restart=RestartPlan(**fields))


def started(attempt: int, t: float) -> ev.AttemptStarted:
    return ev.AttemptStarted(t=t, attempt=attempt, pid=9, start_ticks=9, log_offset=0)


def committed(step: int, t: float) -> ev.CheckpointCommitted:
    return ev.CheckpointCommitted(t=t, step=step, term=1, sequence=step, size_bytes=1, reason="")


def ended(attempt: int, t: float, exit_class: str = "unknown", status: int | None = 1) -> tuple[ev.Event, ev.Event]:
    seen = ev.ExitSeen(t=t, attempt=attempt, status=status)
    return seen, ev.AttemptEnded(t=t, attempt=attempt, exit_class=exit_class, status=status, step=0, committed_step=0)


def after(*events: ev.Event, rules: Policy | None = None) -> State:
    return fold((*BEGUN, *events), rules)


def verdict(state: State, event: ev.Event, rules: Policy | None = None) -> Any:
    """The one event that `decide` emits for `event`."""
    state, actions = decide(state, event, rules or Policy())
    (action,) = actions
    assert isinstance(action, Emit)
    return action.event


def end(attempt: int, before: tuple[ev.Event, ...], exit_class: str, rules: Policy | None = None, **more: Any) -> Any:
    """What follows when `attempt` ends with `exit_class` after `before`."""
    seen, over = ended(attempt, 10.0, exit_class, **more)
    return verdict(after(*before, seen, rules=rules), over, rules)


def test_a_new_run_begins_with_setup_where_there_is_one() -> None:
    state = fold((CREATED,))

    assert decide(state, BEGUN[1], Policy(setup=True))[1] == (Prepare(),)
    assert decide(state, BEGUN[1], Policy())[1] == (StartAttempt(1, 1.0),)


def test_a_run_keeps_its_devices_until_it_is_over() -> None:
    taken = ev.DevicesTaken(t=2.0, devices=["GPU-0"])
    begun = (taken, started(1, 2.0), *ended(1, 3.0), ev.RestartScheduled(t=3.0, attempt=2, delay_s=9.0, reason=""))

    assert after(*begun).devices == ("GPU-0",)
    assert after(*begun, ev.SupervisorStarted(t=4.0, pid=2, boot="a")).devices == ("GPU-0",)
    assert after(*begun, ev.SupervisorStarted(t=4.0, pid=2, boot="b")).devices == ()
    assert after(*begun, ev.RunEnded(t=4.0, state="stopped", exit_code=75, reason="")).devices == ()


def awaited(t: float, ahead: int = 0) -> ev.DevicesAwaited:
    return ev.DevicesAwaited(t=t, wants="2", ahead=ahead, why="")


def test_who_waits_is_queued_stops_at_once_and_does_not_count_the_time() -> None:
    state = after(awaited(2.0, ahead=1), awaited(5.0))
    assert (state.phase, state.awaited_s) == (RunState.QUEUED, 2.0)
    stop = verdict(state, ev.StopRequested(t=6.0, how="stop", grace_s=9.0))
    assert (stop.state, stop.exit_code) == ("stopped", 75)

    taken = decide(state, ev.DevicesTaken(t=12.0, devices=["GPU-0", "GPU-1"]), Policy())[0]

    assert (taken.awaited, taken.queued_s, taken.devices) == (None, 10.0, ("GPU-0", "GPU-1"))
    over = fold_on(taken, ev.RunEnded(t=13.0, state="stopped", exit_code=75, reason=""), rules=Policy())
    assert fold_on(over, ev.ResumeRequested(t=14.0), rules=Policy()).queued_s == 0.0


def test_a_restarted_machine_puts_the_run_into_the_queue_again() -> None:
    restart = ev.RestartScheduled(t=3.0, attempt=2, delay_s=0.0, reason="lost")
    rebooted = ev.SupervisorStarted(t=9.0, pid=2, boot="b")
    before = (ev.DevicesTaken(t=2.0, devices=["GPU-0"]), started(1, 2.0), *ended(1, 3.0, "lost"), restart)

    state, actions = decide(after(*before), rebooted, Policy())
    state = after(*before, rebooted, awaited(10.0))

    assert actions == (StartAttempt(2, 9.0),)
    assert (state.phase, state.scheduled) == (RunState.QUEUED, restart)


def test_a_failed_setup_ends_the_run_with_its_status() -> None:
    rules = Policy(setup=True)
    state = after(ev.SetupStarted(t=2.0), rules=rules)

    over = verdict(state, ev.SetupEnded(t=3.0, status=4), rules)

    assert (over.state, over.exit_code) == ("failed", 4)


def test_success_ends_the_run() -> None:
    assert end(1, (started(1, 2.0),), "succeeded", status=0).state == "succeeded"


def test_the_first_restart_after_progress_is_immediate_and_free_when_something_killed_it() -> None:
    restart = end(1, (started(1, 2.0), committed(5, 3.0)), "killed", status=-9)

    assert (restart.attempt, restart.delay_s, restart.free) == (2, 0.0, True)


def test_backoff_counts_from_the_second_and_is_capped() -> None:
    rules = policy(backoff_initial_s=1.0, backoff_factor=3.0, backoff_max_s=5.0, window_restarts=99)
    state, delays = after(rules=rules), []
    for attempt in range(1, 6):
        state = fold_on(state, started(attempt, 2.0), *ended(attempt, 3.0), rules=rules)
        restart = decide(state, BEGUN[1], rules)[1][0].event  # type: ignore[union-attr]
        delays.append(restart.delay_s)
        state = fold_on(state, restart, rules=rules)

    assert delays == [0.0, 1.0, 3.0, 5.0, 5.0]


def fold_on(state: State, *events: ev.Event, rules: Policy) -> State:
    for event in events:
        state, _ = decide(state, event, rules)
    return state


def test_three_code_errors_without_progress_end_the_run_with_13() -> None:
    restarts = [ev.RestartScheduled(t=5.0, attempt=n, delay_s=0.0, reason="") for n in (2, 3)]
    before = (
        started(1, 2.0), *ended(1, 3.0, "code_error"), restarts[0],
        started(2, 6.0), *ended(2, 7.0, "code_error"), restarts[1], started(3, 8.0),
    )  # fmt: skip

    over = end(3, before, "code_error")

    assert (over.state, over.exit_code) == ("failed", 13)
    assert "3 attempts in a row" in over.reason


def test_a_late_commit_of_the_dead_trainer_is_progress() -> None:
    state = after(started(1, 2.0), *ended(1, 3.0, "code_error"))

    state, _ = decide(state, committed(7, 4.0), Policy())

    assert state.ledger.no_progress == 0


def from_memory(attempt: int, t: float, *, began: int, left: int) -> tuple[ev.Event, ...]:
    """An attempt that continued from a copy of step `began` and left one of step `left`."""
    seen, over = ended(attempt, t + 2)
    restored = ev.Restored(t=t + 1, attempt=attempt, step=began, term=attempt, tier="memory")
    return started(attempt, t), restored, seen, dataclasses.replace(over, memory_step=left)


def test_steps_that_only_memory_has_are_progress_once() -> None:
    first = (started(1, 0), ev.Restored(t=1, attempt=1, step=0, term=1), committed(100, 2))
    one = (*first, *from_memory(1, 3, began=0, left=120)[2:])

    assert after(*one, *from_memory(2, 20, began=120, left=150)).ledger.no_progress == 0
    stuck = (*one, *from_memory(2, 20, began=120, left=120), *from_memory(3, 30, began=120, left=120))
    assert after(*stuck).ledger.no_progress == 2
    again = (
        started(4, 40),
        ev.Restored(t=41, attempt=4, step=100, term=4, tier="disk"),
        *from_memory(4, 42, began=100, left=119)[2:],
    )
    assert after(*stuck, *again).ledger.no_progress == 3, "119 was reached before"


def test_a_program_of_unknown_progress_is_stopped_by_the_window_alone() -> None:
    rules = policy(window_restarts=2, window_s=100.0)
    before: tuple[ev.Event, ...] = ()
    for n in (1, 2):
        before += (
            started(n, n),
            *ended(n, n + 0.5),
            ev.RestartScheduled(t=n + 0.5, attempt=n + 1, delay_s=0, reason=""),
        )

    assert end(3, (*before, started(3, 9.0)), "segfault", rules).exit_code == 13


def test_the_window_forgets() -> None:
    rules = policy(window_restarts=1, window_s=3.0)
    before = (started(1, 2.0), *ended(1, 3.0), ev.RestartScheduled(t=3.0, attempt=2, delay_s=0, reason=""))

    assert isinstance(end(2, (*before, started(2, 4.0)), "segfault", rules), ev.RestartScheduled)


@pytest.mark.parametrize("exit_class", ["preempted", "stopped", "lost"])
def test_free_restarts_cost_no_budget(exit_class: str) -> None:
    restart = end(1, (started(1, 2.0),), exit_class, policy(max_restarts=0))

    assert restart.free


def test_a_program_that_cannot_start_ends_the_run_at_once() -> None:
    over = end(1, (started(1, 2.0),), "cannot_start", status=127)

    assert (over.state, over.exit_code) == ("failed", 127)


def test_a_program_that_once_worked_gets_a_second_chance_to_start() -> None:
    first = (started(1, 2.0), committed(5, 2.5), *ended(1, 3.0, "killed"))
    second = (ev.RestartScheduled(t=3.0, attempt=2, delay_s=0, reason=""), started(2, 4.0))

    assert isinstance(end(2, (*first, *second), "cannot_start", status=127), ev.RestartScheduled)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RestartRule(exit_class="cuda_oom", action="stop"), ev.RunEnded),
        (RestartRule(exit_codes=(1,), action="stop"), ev.RunEnded),
        (RestartRule(exit_codes=(2,), action="stop"), ev.RestartScheduled),
        (RestartRule(pattern="no such thing", action="stop"), ev.RestartScheduled),
    ],
)
def test_the_first_rule_that_matches_wins(rule: RestartRule, expected: type) -> None:
    rules = policy(rules=(rule, RestartRule(exit_class="cuda_oom", action="restart")))

    assert isinstance(end(1, (started(1, 2.0),), "cuda_oom", rules), expected)


def test_policy_no_never_restarts_and_keeps_the_programs_own_code() -> None:
    over = end(1, (started(1, 2.0),), "segfault", policy(policy="no"), status=-11)

    assert (over.state, over.exit_code) == ("failed", 139)


def test_policy_always_restarts_success() -> None:
    assert isinstance(end(1, (started(1, 2.0),), "succeeded", policy(policy="always"), status=0), ev.RestartScheduled)


def test_a_stop_is_asked_then_ends_with_75() -> None:
    state = after(started(1, 2.0))
    state, actions = decide(state, ev.StopRequested(t=3.0, how="stop", grace_s=7.0), Policy())
    assert actions == (AskStop(7.0),)
    assert state.phase == RunState.STOPPING
    seen, over = ended(1, 4.0, "stopped", 75)

    result = verdict(decide(state, seen, Policy())[0], over)

    assert (result.state, result.exit_code, result.to_be_continued) == ("stopped", 75, False)


def test_a_preempted_run_is_to_be_continued() -> None:
    stop = ev.StopRequested(t=3.0, how="preempted", grace_s=7.0)

    assert end(1, (started(1, 2.0), stop), "user_stop", status=-9).to_be_continued


def test_kill_after_stop_kills() -> None:
    state = after(started(1, 2.0), ev.StopRequested(t=3.0, how="stop"))

    assert decide(state, ev.StopRequested(t=4.0, how="kill"), Policy())[1] == (KillAttempt(),)


def test_a_stop_while_waiting_for_a_restart_ends_the_run() -> None:
    state = after(started(1, 2.0), *ended(1, 3.0), ev.RestartScheduled(t=3.0, attempt=2, delay_s=60.0, reason=""))

    assert verdict(state, ev.StopRequested(t=4.0, how="stop")).state == "stopped"


def test_resume_opens_new_ledgers_and_starts_at_what_is_wanted() -> None:
    spent = (started(1, 2.0), *ended(1, 3.0), ev.RunEnded(t=3.0, state="failed", exit_code=13, reason=""))

    state, actions = decide(after(*spent), ev.ResumeRequested(t=4.0, want={"step": 3}), Policy())

    assert actions == (StartAttempt(2, 4.0),)
    assert state.ledger == State().ledger
    assert state.want == {"step": 3}


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ((), StartAttempt(1, 9.0)),
        ((started(1, 2.0),), Emit(ev.ExitSeen(t=9.0, attempt=1, status=None))),
        ((started(1, 2.0), ended(1, 3.0)[0]), Classify(ended(1, 3.0)[0])),  # type: ignore[arg-type]
        ((ev.RestartScheduled(t=3.0, attempt=2, delay_s=60.0, reason=""),), StartAttempt(2, 63.0)),
        ((ev.RunEnded(t=3.0, state="stopped", exit_code=75, reason=""),), Finish()),
    ],
)
def test_a_new_supervisor_goes_on_where_the_last_one_stopped(before: tuple[ev.Event, ...], expected: Any) -> None:
    _, actions = decide(after(*before), ev.SupervisorStarted(t=9.0, pid=2, boot="a"), Policy())

    assert actions == (expected,)


def test_a_new_supervisor_repeats_the_verdict_of_an_end_that_was_not_decided() -> None:
    state = after(started(1, 2.0), *ended(1, 3.0))

    (action,) = decide(state, ev.SupervisorStarted(t=9.0, pid=2, boot="a"), Policy())[1]

    assert isinstance(action, Emit)
    assert isinstance(action.event, ev.RestartScheduled)


def test_events_of_an_attempt_that_is_over_change_nothing() -> None:
    state = after(started(1, 2.0), *ended(1, 3.0))

    later, actions = decide(state, ended(1, 4.0)[0], Policy())

    assert actions == ()
    assert dataclasses.replace(later, updated_s=state.updated_s) == state


def counted(*classes: str, step: int = 5) -> Failures:
    """What is known after attempts of 100 s each that ended in these ways at `step`."""
    told: list[ev.Event] = []
    for attempt, exit_class in enumerate(classes, start=1):
        seen, over = ended(attempt, attempt * 1000.0 + 100, exit_class)
        told += [started(attempt, attempt * 1000.0), seen, dataclasses.replace(over, step=step)]
    return after(*told).seen


@pytest.mark.parametrize(
    ("classes", "step", "process", "machine"),
    [
        (("killed", "hang", "code_error"), 5, 3, 0),
        (("killed",), 0, 0, 0),  # it had not trained
        (("stopped", "preempted"), 5, 0, 0),  # it had time to save
        (("lost", "killed"), 5, 1, 1),
    ],
)
def test_failures_are_counted_by_what_was_lost(classes: tuple[str, ...], step: int, process: int, machine: int) -> None:
    seen = counted(*classes, step=step)

    assert (seen.process, seen.machine) == (process, machine)


def test_attempts_count_as_trained_time_but_not_the_time_a_machine_was_off() -> None:
    assert counted("killed", "killed").trained_s == 200.0
    assert counted("lost").trained_s == 0.0
    off = (started(1, 10.0), committed(5, 40.0), *ended(1, 9e5, "lost", None))
    assert after(*off).seen == Failures(machine=1, trained_s=30.0)


def test_an_end_that_was_asked_for_is_no_failure_and_a_resume_forgets_nothing() -> None:
    asked = (started(1, 2.0), ev.StopRequested(t=3.0, how="kill"), *ended(1, 12.0, "killed"))

    assert after(*asked).seen == Failures(trained_s=10.0)
    assert after(*asked, ev.ResumeRequested(t=20.0)).seen == Failures(trained_s=10.0)


def test_a_return_from_the_mirror_means_that_a_machine_was_lost() -> None:
    back = ev.Restored(t=3.0, attempt=1, step=5, term=2, tier="mirror")

    assert after(started(1, 2.0), back).seen.lost == 1
    assert after(started(1, 2.0), dataclasses.replace(back, tier="disk")).seen.lost == 0


def interval(tier: str, seconds: float) -> ev.IntervalChosen:
    names = ("best_s", "blocked_s", "write_s", "failure_s", "restart_s", "trained_s", "max_overhead_ratio")
    return ev.IntervalChosen(tier=tier, seconds=seconds, bound="", failures=0, **dict.fromkeys(names, 0.0))


def test_the_newest_interval_of_each_tier_is_known() -> None:
    state = after(interval("disk", 10.0), interval("memory", 1.0), interval("disk", 20.0))

    assert {chosen.tier: chosen.seconds for chosen in state.intervals} == {"disk": 20.0, "memory": 1.0}


HOURLY = Policy(segment_s=3600.0)


def over(attempt: int, t: float) -> ev.SegmentOver:
    return ev.SegmentOver(t=t, attempt=attempt, grace_s=7.0)


def test_a_segment_is_over_once_and_only_while_the_attempt_runs() -> None:
    running, gone = after(started(1, 10.0)), after(started(1, 10.0), ended(1, 20.0)[0])

    assert not segment_is_over(running, HOURLY, 3609.0)
    assert segment_is_over(running, HOURLY, 3610.0)
    assert not segment_is_over(running, Policy(), 9e9)
    assert not segment_is_over(gone, HOURLY, 9e9)
    assert not segment_is_over(after(started(1, 10.0), over(1, 3610.0)), HOURLY, 9e9)
    assert not segment_is_over(after(started(1, 10.0), ev.StopRequested(how="stop")), HOURLY, 9e9)


def test_the_end_of_a_segment_asks_as_a_stop_does_and_a_new_supervisor_asks_again() -> None:
    state, actions = decide(after(started(1, 2.0)), over(1, 3.0), HOURLY)

    assert (actions, state.phase) == ((AskStop(7.0),), RunState.RUNNING)
    assert decide(state, over(1, 4.0), HOURLY)[1] == ()
    assert decide(state, ev.SupervisorStarted(t=5.0, pid=2, adopted=True), HOURLY)[1] == (AskStop(7.0),)
    assert decide(after(started(1, 2.0)), over(2, 3.0), HOURLY)[1] == ()


@pytest.mark.parametrize("exit_class", ["segment_end", "segment_cut"])
@pytest.mark.parametrize(
    "rules", [policy(policy="no", max_restarts=0), policy(rules=(RestartRule(exit_codes=(75,), action="stop"),))]
)
def test_a_segment_is_followed_by_the_next_at_once_whatever_the_policy(exit_class: str, rules: Policy) -> None:
    before = (started(1, 2.0), committed(5, 3.0), over(1, 4.0))

    restart = end(1, before, exit_class, rules, status=75)

    assert (restart.attempt, restart.delay_s, restart.free, restart.reason) == (2, 0.0, True, exit_class)
    state = after(*before, *ended(1, 10.0, exit_class), restart)
    assert (state.segments, state.restarts, state.ledger.restarts) == (1, 0, 0)
    assert after(*before, *ended(1, 10.0, exit_class), restart, started(2, 11.0)).segment is None


def test_segments_that_save_nothing_end_by_the_budget_of_progress() -> None:
    """Also those of a program that was never seen to use the library, unless they were long."""
    rules = dataclasses.replace(policy(max_no_progress=2), segment_s=5.0)
    again = ev.RestartScheduled(t=7.0, attempt=2, delay_s=0.0, reason="segment_cut", free=True)
    before = (started(1, 2.0), over(1, 7.0), *ended(1, 7.0, "segment_cut"), again)

    result = end(2, (*before, started(2, 7.5), over(2, 9.0)), "segment_cut", rules)
    assert (result.state, result.exit_code) == ("failed", 13)
    assert "2 attempts in a row brought no newer checkpoint: `segment` (5 s) is too short" in result.reason
    assert isinstance(end(2, (*before, started(2, -600.0)), "segment_cut", rules), ev.RestartScheduled)


def test_a_stop_while_a_segment_ends_ends_the_run() -> None:
    state = after(started(1, 2.0), committed(5, 3.0), over(1, 4.0))
    state, actions = decide(state, ev.StopRequested(t=5.0, how="stop", grace_s=9.0), HOURLY)
    assert actions == (AskStop(9.0),)

    result = verdict(decide(state, ended(1, 6.0, "stopped", 75)[0], HOURLY)[0], ended(1, 6.0, "stopped", 75)[1])

    assert (result.state, result.exit_code) == ("stopped", 75)


def test_a_segments_end_is_no_failure_of_the_machine() -> None:
    assert counted("segment_end", "segment_cut") == Failures(trained_s=200.0)


def test_without_an_intact_checkpoint_nothing_is_tried_again() -> None:
    over = end(1, (started(1, 2.0),), "no_checkpoint")

    assert (over.state, over.exit_code, over.reason) == ("failed", 12, "no checkpoint is intact")


SUPERSEDED = ev.FindingRaised(t=5.0, id="mirror-superseded", severity="error", message="it goes on on gpu-b")
YIELDS = Policy(yields=True, stop_grace_s=60.0)


def test_a_run_of_a_pool_saves_and_stops_when_another_machine_goes_on() -> None:
    running = after(started(1, 2.0), rules=YIELDS)

    stop = verdict(running, SUPERSEDED, YIELDS)
    state, actions = decide(decide(running, SUPERSEDED, YIELDS)[0], stop, YIELDS)
    seen, over = ended(1, 6.0, "stopped", 75)
    result = verdict(decide(state, seen, YIELDS)[0], over, YIELDS)

    assert (stop.how, actions) == ("superseded", (AskStop(60.0),))
    assert (result.state, result.exit_code, result.reason) == ("stopped", 11, "it goes on on gpu-b")
    assert not result.to_be_continued


def test_a_run_of_no_pool_goes_on_where_it_is() -> None:
    assert decide(after(started(1, 2.0)), SUPERSEDED, Policy())[1] == ()


def test_a_supervisor_that_died_over_it_is_followed_by_one_that_stops_the_run() -> None:
    state = after(started(1, 2.0), SUPERSEDED, rules=YIELDS)

    _, actions = decide(state, ev.SupervisorStarted(t=6.0, pid=2, boot="a", adopted=True), YIELDS)

    assert [action.event.how for action in actions if isinstance(action, Emit)] == ["superseded"]


def test_a_run_of_a_pool_that_is_told_to_stop_through_its_mirror_stops_as_on_request() -> None:
    told = ev.FindingRaised(t=5.0, id="mirror-stop", severity="warning", message="")
    running = after(started(1, 2.0), rules=YIELDS)

    stop = verdict(running, told, YIELDS)
    assert (stop.how, stop.grace_s) == ("stop", 60.0)
    assert verdict(decide(running, told, YIELDS)[0], SUPERSEDED, YIELDS).how == "superseded"  # the graver one


def test_what_was_superseded_may_be_tried_again() -> None:
    stop = ev.StopRequested(t=5.0, how="superseded", grace_s=60.0)
    over = ev.RunEnded(t=6.0, state="stopped", exit_code=11, reason="")
    cleared = ev.FindingCleared(t=7.0, id="mirror-superseded")

    state, actions = decide(
        after(started(1, 2.0), SUPERSEDED, stop, over, cleared, rules=YIELDS), ev.ResumeRequested(t=7.0), YIELDS
    )

    assert state.stop is None
    assert [type(action) for action in actions] == [StartAttempt]
    assert decide(state, replace_t(SUPERSEDED, 9.0), YIELDS)[1] != ()


def replace_t(event: ev.FindingRaised, t: float) -> ev.FindingRaised:
    return dataclasses.replace(event, t=t)
