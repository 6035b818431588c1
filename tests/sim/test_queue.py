"""Random machines, runs and faults against the book of devices and the lifecycle table, in virtual time.

What `node.lineup` does around them is here in a few lines. Whatever happens: never two runs on one device, nobody takes
what an earlier one in the line could use, no claim outlives its run, and once the faults are over every run ends.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from holdfast import events as ev
from holdfast.lifecycle import Action, Classify, Emit, Finish, StartAttempt, decide, fold
from holdfast.plan import RestartPlan
from holdfast.state import OVER, Policy, State
from holdfast.turn import Book, Device, Waiting, asked, fitting, kept, turn
from holdfast.units import Accelerators

MACHINES = 20  # a seed
FAULTS = 60  # a machine
PATIENT = Policy(
    restart=RestartPlan(max_restarts=10**6, max_no_progress=10**6, window_restarts=10**6, backoff_max_s=1.0)
)


class Died(Exception):
    """The supervisor did."""


@dataclass
class Run:
    """One run: its journal, its supervisor while there is one, its trainer with the devices it was started with."""

    dir: str
    wants: Accelerators
    journal: list[ev.Event]
    state: State | None = None
    start: StartAttempt | None = None
    trainer: tuple[str, ...] | None = None
    attempt: int = 0  # of the trainer

    @property
    def lives(self) -> bool:
        return self.state is not None or self.trainer is not None


class Machine:
    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now_s, self.boot, self.faults = rng, 1000.0, 0, FAULTS
        kinds = [rng.choice(["A100", "T4"]) for _ in range(rng.randrange(1, 5))]
        self.devices = [
            Device(index=n, uuid=f"GPU-{n}", name=kind, memory_bytes=1, used_bytes=0) for n, kind in enumerate(kinds)
        ]
        self.busy: dict[str, str] = {}
        self.book = Book()
        self.runs = [self.made(n) for n in range(rng.randrange(2, 7))]

    def made(self, number: int) -> Run:
        kind = self.rng.choice(["", *(device.name for device in self.devices)])
        most = len(fitting(Accelerators(count=1, kind=kind), self.devices))
        wants = Accelerators(count=self.rng.randrange(1, most + 1), kind=kind)
        return Run(f"/runs/{number}", wants, [ev.RunCreated(t=self.now_s + self.rng.random(), run=str(number))])

    # -- one supervisor

    def apply(self, run: Run, event: ev.Event) -> None:
        todo = [event]
        while todo:
            event = todo.pop(0)
            self.maybe_die()
            run.journal.append(event)
            assert run.state is not None
            run.state, actions = decide(run.state, event, PATIENT)
            for action in actions:
                if isinstance(action, Emit):
                    todo.append(action.event)
                else:
                    self.maybe_die()
                    self.do(run, action)

    def do(self, run: Run, action: Action) -> None:
        if isinstance(action, StartAttempt):
            run.start = action
        elif isinstance(action, Classify):
            why = "lost" if action.exit.status is None else "succeeded" if action.exit.status == 0 else "unknown"
            ended = ev.AttemptEnded(
                t=self.now_s, attempt=action.exit.attempt, exit_class=why, status=action.exit.status, step=0,
                committed_step=0,
            )  # fmt: skip
            self.apply(run, ended)
        elif isinstance(action, Finish):
            self.book = self.book.without(run.dir)

    def maybe_die(self) -> None:
        if self.faults > 0 and self.rng.random() < 0.03:
            self.faults -= 1
            raise Died

    def tick(self, run: Run) -> None:
        if run.state is None:
            run.state, run.start = fold(run.journal, PATIENT), None
            if run.trainer is not None and run.attempt > run.state.attempt:
                self.began(run)
            adopted = run.trainer is not None
            self.apply(run, ev.SupervisorStarted(t=self.now_s, pid=1, adopted=adopted, boot=str(self.boot)))
        elif run.state.phase not in OVER:
            if run.state.started is not None and run.trainer is None:
                self.apply(run, ev.ExitSeen(t=self.now_s, attempt=run.state.attempt, status=self.rng.choice([0, 1])))
            elif run.state.devices:
                mine = dict.fromkeys(run.state.devices, run.dir) if run.state.started else {}
                self.book = kept(run.dir, run.state.devices, self.looked(), mine)
            if run.start is not None and self.now_s >= run.start.at_s and self.has_devices(run):
                self.spawn(run, run.start.attempt)

    def has_devices(self, run: Run) -> bool:
        assert run.state is not None
        used = {uuid: other.dir for other in self.runs if other is not run for uuid in other.trainer or ()}
        if run.state.devices:
            self.book = kept(run.dir, run.state.devices, self.looked(), used)
            if set(self.book.of(run.dir)) == set(run.state.devices):
                return True
        me = Waiting(dir=run.dir, wants=run.wants, since_s=run.state.since_s)
        before = self.looked()
        self.book = asked(me, before, self.devices, {**self.busy, **used})
        uuids = self.book.of(run.dir)
        self.fair(me, before, uuids)
        if uuids:
            self.apply(run, ev.DevicesTaken(t=self.now_s, devices=list(uuids)))
        elif run.state.awaited is None:
            self.apply(run, ev.DevicesAwaited(t=self.now_s, wants="", ahead=len(self.book.ahead(me)), why=""))
        return bool(uuids)

    def spawn(self, run: Run, attempt: int) -> None:
        assert run.state is not None and run.trainer is None
        run.start, run.trainer, run.attempt = None, run.state.devices, attempt
        used = [uuid for other in self.runs for uuid in other.trainer or ()]
        assert len(used) == len(set(used)), "two runs on one device"
        assert len(run.trainer) == run.wants.count
        self.maybe_die()
        self.began(run)

    def began(self, run: Run) -> None:
        self.apply(run, ev.AttemptStarted(t=self.now_s, attempt=run.attempt, pid=1, start_ticks=1, log_offset=0))

    def looked(self) -> Book:
        """The book without the dead."""
        book = self.book
        for run in self.runs:
            if not run.lives:
                book = book.without(run.dir)
        return book

    def fair(self, me: Waiting, before: Book, uuids: tuple[str, ...]) -> None:
        for earlier in before.ahead(me):
            usable = {device.uuid for device in fitting(earlier.wants, self.devices)}
            assert not usable & set(uuids), "a later one was served first"

    # -- what happens

    def turn(self) -> None:
        self.now_s += self.rng.expovariate(1.0)
        run = self.rng.choice(self.runs)
        try:
            self.tick(run)
        except Died:
            run.state = run.start = None
        dice = self.rng.random()
        if dice < 0.2 and run.trainer is not None:
            run.trainer = None
        elif self.faults > 0 and dice < 0.35:
            self.faults -= 1
            self.break_something(run)
        elif self.faults <= 0:
            self.busy = {}

    def break_something(self, run: Run) -> None:
        what = self.rng.randrange(6)
        if what == 0:
            run.state = run.start = None
        elif what == 1:  # all of it; a shim comes back when somebody resumes it, which `tick` does
            run.state = run.start = run.trainer = None
        elif what == 2:
            self.book = Book()
        elif what == 3:
            self.boot += 1
            self.book = Book()
            for each in self.runs:
                each.state = each.start = each.trainer = None
        elif what == 4:
            self.busy = {self.rng.choice(self.devices).uuid: "bob"}
        else:
            self.busy = {}


@pytest.mark.parametrize("seed", range(2))
def test_no_machine_breaks_a_promise(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(MACHINES):
        machine = Machine(rng)
        for _ in range(6000):
            machine.turn()
            if all(run.state and run.state.phase in OVER for run in machine.runs) and not machine.faults:
                break
        else:
            raise AssertionError("somebody starves")
        assert machine.looked().claims == {} and machine.looked().waiting == ()


def test_what_a_lost_book_knew_is_not_given_away() -> None:
    device = Device(index=0, uuid="GPU-0", name="A100", memory_bytes=1, used_bytes=0)
    me = Waiting(dir="/runs/b", wants=Accelerators(count=1), since_s=2.0)

    assert turn(me, Book(), [device], {"GPU-0": "/runs/a"}) == ()
    theirs, mine = Book(claims={"GPU-0": "/runs/b"}), Book(claims={"GPU-0": "/runs/a"})
    assert kept("/runs/a", ["GPU-0"], theirs, {"GPU-0": "/runs/a"}) == mine
    assert kept("/runs/a", ["GPU-0"], theirs, {}) == theirs
    assert kept("/runs/a", ["GPU-0"], Book(), {"GPU-0": "/runs/b"}) == Book()
    assert kept("/runs/a", ["GPU-0"], Book(), {}) == mine
