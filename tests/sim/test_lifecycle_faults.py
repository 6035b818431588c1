"""Random fault schedules against the lifecycle table, in virtual time.

The world below is a shim, a trainer and an archiver in a few lines each; the supervisor is the real table with a
journal of its own, and dies between any two of its own actions. Whatever happens: there are never two trainers, no
durable step is forgotten, the budgets hold, and every schedule ends.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from holdfast import events as ev
from holdfast.exits import ExitClass
from holdfast.lifecycle import (
    Action,
    AskStop,
    Classify,
    Emit,
    Finish,
    KillAttempt,
    Prepare,
    StartAttempt,
    decide,
    fold,
)
from holdfast.plan import RestartPlan
from holdfast.state import OVER, Policy, State
from holdfast.verdict import SEGMENT

SEEDS = 26
SCHEDULES = 50  # a seed
FAULTS = 80  # a schedule, then the world is healthy
ASKED = (ExitClass.SUCCEEDED, ExitClass.USER_STOP, ExitClass.STOPPED, *SEGMENT)
ENDS = [each for each in ExitClass if each not in ASKED]


class Died(Exception):
    """The supervisor did."""


class World:
    """One run on one machine."""

    decided = 0  # events given to the table, in all worlds

    def __init__(self, rng: random.Random, policy: Policy) -> None:
        self.rng, self.policy = rng, policy
        self.now_s = 1000.0
        self.boot = 0
        self.journal: list[ev.Event] = [ev.RunCreated(t=self.now_s, run="r")]
        self.trainer: int | None = None
        self.exits: list[ev.ExitSeen] = []  # the shim's, not acknowledged
        self.records: list[ev.Restored] = []  # what the library wrote down
        self.archive: list[ev.CheckpointCommitted] = []  # what the archiver wrote down
        self.why: ExitClass = ExitClass.UNKNOWN
        self.step = self.durable = 0
        self.faults = FAULTS
        self.state: State | None = None
        self.start: StartAttempt | None = None
        self.stop_at_s: float | None = None
        self.over = False
        self.spawned: list[int] = []

    # -- the supervisor

    def append(self, event: ev.Event) -> None:
        self.maybe_die()
        self.journal.append(event)

    def apply(self, event: ev.Event) -> None:
        todo = [event]
        while todo:
            event = todo.pop(0)
            self.append(event)
            assert self.state is not None
            self.state, actions = decide(self.state, event, self.policy)
            World.decided += 1
            for action in actions:
                if isinstance(action, Emit):
                    todo.append(action.event)
                else:
                    self.maybe_die()
                    self.do(action)

    def do(self, action: Action) -> None:
        if isinstance(action, Prepare):
            self.apply(ev.SetupStarted(t=self.now_s))
            self.apply(ev.SetupEnded(t=self.now_s, status=0))
        elif isinstance(action, StartAttempt):
            self.start = action
        elif isinstance(action, Classify):
            self.classify(action.exit)
        elif isinstance(action, AskStop):
            self.stop_at_s = self.now_s + action.grace_s
        elif isinstance(action, KillAttempt):
            self.die(ExitClass.USER_STOP, -9)
        elif isinstance(action, Finish):
            assert self.trainer is None
            self.over = True

    def observe(self) -> None:
        """Journal what library and archiver wrote and the journal does not have."""
        assert self.state is not None
        told = self.state.restored.attempt if self.state.restored else 0
        if self.records and self.records[-1].attempt > told:
            self.apply(self.records[-1])
        known = self.state.committed.sequence if self.state.committed else 0
        for line in self.archive[known:]:
            self.apply(line)

    def classify(self, seen: ev.ExitSeen) -> None:
        self.observe()
        why = self.why if seen.status is not None else ExitClass.LOST
        self.apply(
            ev.AttemptEnded(
                t=self.now_s, attempt=seen.attempt, exit_class=why.value, status=seen.status, step=self.step,
                committed_step=self.durable,
            )
        )  # fmt: skip

    def maybe_die(self) -> None:
        if self.faults > 0 and self.rng.random() < 0.02:
            self.faults -= 1
            raise Died

    def supervisor_starts(self) -> None:
        """As `Supervisor.run`: fold, ask the shim, say so."""
        World.decided += len(self.journal)
        self.state, self.start, self.stop_at_s = fold(self.journal, self.policy), None, None
        for seen in list(self.exits):
            self.tell_exit(seen)
        if self.trainer is not None and self.trainer > self.state.attempt:
            self.apply(self.started(self.trainer))
        adopted = self.trainer is not None
        self.apply(ev.SupervisorStarted(t=self.now_s, pid=1, adopted=adopted, boot=str(self.boot)))

    def tell_exit(self, seen: ev.ExitSeen) -> None:
        assert self.state is not None
        if seen.attempt > self.state.attempt:
            self.apply(self.started(seen.attempt))
        self.apply(seen)
        self.exits.remove(seen)

    def started(self, attempt: int) -> ev.AttemptStarted:
        return ev.AttemptStarted(
            t=self.now_s, attempt=attempt, pid=1, start_ticks=1, log_offset=0, resume_step=self.durable
        )

    # -- shim, trainer, archiver

    def spawn(self, attempt: int) -> None:
        assert self.trainer is None, "two trainers"
        assert attempt not in self.spawned, "an attempt began twice"
        self.spawned.append(attempt)
        self.trainer, self.step, self.stop_at_s = attempt, self.durable, None
        self.records.append(ev.Restored(t=self.now_s, attempt=attempt, step=self.durable, term=attempt))
        self.maybe_die()  # it lives, and its supervisor never learns so from the answer
        self.apply(self.started(attempt))

    def die(self, why: ExitClass, status: int) -> None:
        if self.trainer is not None:
            self.exits.append(ev.ExitSeen(t=self.now_s, attempt=self.trainer, status=status, number=len(self.spawned)))
            self.trainer, self.why = None, why

    def commit(self) -> None:
        if self.step > self.durable:
            self.durable = self.step
            self.archive.append(
                ev.CheckpointCommitted(
                    t=self.now_s, step=self.step, term=self.spawned[-1], sequence=len(self.archive) + 1, size_bytes=1,
                    reason="",
                )
            )  # fmt: skip

    def turn(self) -> None:
        """One thing happens."""
        self.now_s += self.rng.expovariate(0.2)
        if self.state is None:
            self.supervisor_starts()
            return
        self.observe()
        if self.start is not None and self.now_s >= self.start.at_s:
            start, self.start = self.start, None
            self.spawn(start.attempt)
        for seen in list(self.exits):
            self.tell_exit(seen)
        if self.start is not None:
            self.now_s = max(self.now_s, self.start.at_s)
        if self.faults > 0 and self.rng.random() < 0.1:
            self.end_segment()
        if self.stop_at_s is not None and self.trainer is not None:
            self.leave(saves=self.rng.random() < 0.5)
        elif self.trainer is not None:
            self.train()

    def train(self) -> None:
        dice = self.rng.random()
        if self.faults <= 0:
            self.step += 1
            self.commit()
            self.die(ExitClass.SUCCEEDED, 0)
        elif dice < 0.35:
            self.step += self.rng.randrange(1, 5)
        elif dice < 0.6:
            self.commit()
        elif dice < 0.9:
            self.faults -= 1
            self.die(self.rng.choice(ENDS), self.rng.choice([1, -9, -15, 139]))
            if self.rng.random() < 0.3:
                self.commit()  # the archiver finishes what the dead left sealed
        elif dice < 0.95:
            self.reboot()
        elif dice < 0.97:
            how = self.rng.choice(["stop", "kill", "preempted"])
            self.apply(ev.StopRequested(t=self.now_s, how=how, grace_s=5.0))

    def leave(self, *, saves: bool) -> None:
        """What was asked for, or the end of the grace period."""
        assert self.state is not None
        stopping = self.state.stop is not None
        if saves:
            self.commit()
            self.die(ExitClass.STOPPED if stopping else ExitClass.SEGMENT_END, 75)
        else:
            self.die(ExitClass.USER_STOP if stopping else ExitClass.SEGMENT_CUT, -9)

    def end_segment(self) -> None:
        """Told at any moment: also to an attempt that is gone, or asked to leave already."""
        assert self.state is not None
        attempt = self.rng.choice([self.state.attempt, self.state.attempt, self.state.attempt - 1])
        self.apply(ev.SegmentOver(t=self.now_s, attempt=attempt, grace_s=5.0))

    def reboot(self) -> None:
        self.faults -= 1
        self.boot += 1
        self.trainer, self.exits = None, []
        raise Died


def schedules(seed: int) -> Iterator[World]:
    rng = random.Random(seed)
    for _ in range(SCHEDULES):
        restart = RestartPlan(
            policy=rng.choice(["no", "on-failure", "on-failure", "on-failure", "always"]),
            max_restarts=rng.choice([0, 3, 20, 100]),
            max_no_progress=rng.choice([1, 3, 10]),
            backoff_max_s=rng.choice([0.0, 3.0, 600.0]),
            window_restarts=rng.choice([1, 5, 50]),
            window_s=rng.choice([10.0, 3600.0]),
        )
        yield World(rng, Policy(restart=restart, setup=rng.random() < 0.2))


def live(world: World) -> None:
    for _ in range(5000):
        try:
            world.turn()
        except Died:
            world.state = None
        if world.over and world.state is not None and not resumed(world):
            return
    raise AssertionError("this schedule does not end")


def resumed(world: World) -> bool:
    """A person looks at the end of the run, and may go on."""
    if world.faults <= 0 or world.rng.random() < 0.3:
        return False
    world.faults -= 1
    world.over = False
    try:
        world.apply(ev.ResumeRequested(t=world.now_s))
    except Died:
        world.state = None
    return True


def check(world: World) -> None:
    plan = world.policy.restart
    for life in lives(world.journal):
        restarts = [event for event in life if isinstance(event, ev.RestartScheduled)]
        assert sum(not event.free for event in restarts) <= plan.max_restarts
        assert all(0 <= event.delay_s <= plan.backoff_max_s for event in restarts)
        assert longest_without_progress(life) <= plan.max_no_progress
        assert all(follows_a_segment(event) for event in after_segments(life))
    state = fold(world.journal, world.policy)
    assert state.phase in OVER
    assert state.committed_step == world.durable
    assert world.spawned == sorted(set(world.spawned))


def lives(journal: list[ev.Event]) -> list[list[ev.Event]]:
    """The journal cut at each resume, where budgets start anew."""
    cut: list[list[ev.Event]] = [[]]
    for event in journal:
        if isinstance(event, ev.ResumeRequested):
            cut.append([])
        cut[-1].append(event)
    return cut


def after_segments(life: list[ev.Event]) -> Iterator[ev.Event]:
    """What was decided about each attempt that its segment ended."""
    told = [event for event in life if isinstance(event, (ev.AttemptEnded, ev.RestartScheduled, ev.RunEnded))]
    for ended, verdict in pairwise(told):
        if isinstance(ended, ev.AttemptEnded) and ended.exit_class in SEGMENT:
            yield verdict


def follows_a_segment(verdict: ev.Event) -> bool:
    if isinstance(verdict, ev.RestartScheduled):
        return verdict.free and verdict.delay_s == 0.0
    return isinstance(verdict, ev.RunEnded) and (verdict.state == "stopped" or verdict.exit_code == 13)


def longest_without_progress(journal: list[ev.Event]) -> int:
    """Ended attempts in a row, reboots apart, in and after which nothing became durable; counted without the table."""
    longest = run = 0
    progressed = False
    for event in journal:
        if isinstance(event, ev.CheckpointCommitted):
            progressed, run = True, 0
        elif isinstance(event, ev.AttemptEnded):
            run += not progressed and event.exit_class not in ("lost", "succeeded")
            longest, progressed = max(longest, run), False
    return longest


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_schedule_breaks_a_promise(seed: int) -> None:
    for world in schedules(seed):
        live(world)
        check(world)


def test_the_schedules_were_many() -> None:
    before, verdicts = World.decided, []
    for world in schedules(SEEDS):
        live(world)
        verdicts += [type(verdict) for life in lives(world.journal) for verdict in after_segments(life)]

    assert (World.decided - before) * SEEDS > 200_000
    assert verdicts.count(ev.RestartScheduled) > 50
    assert verdicts.count(ev.RunEnded) > 5
