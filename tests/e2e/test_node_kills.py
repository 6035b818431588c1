"""Any one of ours may be killed at any moment, and the trainer does not notice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from holdfast import process
from holdfast.errors import LeaseHeld
from holdfast.events import AttemptEnded, AttemptStarted, ProcessRestarted
from holdfast.runs import RunDir
from tests import noderuns, rundirs
from tests.noderuns import shell
from tests.waiting import until

pytestmark = pytest.mark.e2e
KILLS = 40  # of random ones: so many let nobody begin an attempt in between on a slow machine
UNTIL_TOLD = "echo up; while [ ! -e stop ]; do sleep 0.05; done; exit 0"


@pytest.mark.parametrize("name", ["shim", "supervisor"])
def test_one_of_ours_is_killed_and_comes_back(home: Path, name: str) -> None:
    run = noderuns.begin(home, shell(UNTIL_TOLD))
    trainer = noderuns.attempt(run, 1)

    for _ in range(3):
        old = noderuns.role(run, name)
        until(noderuns.kill(old))
        noderuns.replaced(run, name, old)
        noderuns.answers(run)

    assert noderuns.role(run, "trainer") == process.Identity(trainer.pid, trainer.start_ticks)
    (run.code / "stop").touch()
    assert noderuns.ended(run).state == "succeeded"
    assert len(noderuns.of(run, AttemptStarted)) == 1
    assert noderuns.of(run, AttemptEnded)[0].status == 0


def test_both_are_killed_at_once(home: Path) -> None:
    run = noderuns.begin(home, shell(UNTIL_TOLD))
    trainer = noderuns.attempt(run, 1)
    gone = [noderuns.kill(noderuns.role(run, name)) for name in ("shim", "supervisor")]
    until(lambda: all(each() for each in gone))

    revive(run)
    noderuns.answers(run)
    (run.code / "stop").touch()

    assert noderuns.ended(run).state == "succeeded"
    assert [started.pid for started in noderuns.of(run, AttemptStarted)] == [trainer.pid]


def test_the_trainers_end_is_not_missed_while_the_supervisor_is_away(home: Path) -> None:
    run = noderuns.begin(home, shell("echo up; [ $HOLDFAST_ATTEMPT = 2 ] || sleep 1000"))
    trainer = noderuns.attempt(run, 1)
    supervisor = noderuns.role(run, "supervisor")

    process.send_signal(supervisor, signal.SIGSTOP)
    until(noderuns.kill(process.Identity(trainer.pid, trainer.start_ticks)))
    until(noderuns.kill(supervisor))

    assert noderuns.ended(run).state == "succeeded"
    assert noderuns.of(run, AttemptEnded)[0].exit_class == "killed"


def test_the_shim_that_adopted_a_trainer_sees_its_exit_status(home: Path) -> None:
    run = noderuns.begin(
        home, shell("echo up; while [ ! -e stop ]; do sleep 0.05; done; exit 7"), restart=rundirs.once()
    )
    noderuns.attempt(run, 1)
    old = noderuns.role(run, "shim")
    until(noderuns.kill(old))
    noderuns.replaced(run, "shim", old)
    noderuns.answers(run)

    (run.code / "stop").touch()

    assert noderuns.ended(run).exit_code == 7  # PIDFD_GET_INFO, Linux 6.15
    assert [event.role for event in noderuns.of(run, ProcessRestarted)].count("shim") == 1


def test_a_killed_trainer_is_restarted(home: Path) -> None:
    run = noderuns.begin(home, shell("echo up; [ $HOLDFAST_ATTEMPT = 2 ] || sleep 1000"))
    trainer = noderuns.attempt(run, 1)

    os.kill(trainer.pid, signal.SIGKILL)

    assert noderuns.ended(run).state == "succeeded"
    seen = noderuns.of(run, AttemptEnded)[0]
    assert (seen.exit_class, seen.status) == ("killed", -9)


def test_sighup_to_everything_changes_nothing(home: Path) -> None:
    run = noderuns.begin(home, shell(UNTIL_TOLD))
    noderuns.attempt(run, 1)
    before = rundirs.processes(run)

    for name in ("shim", "supervisor", "trainer"):
        process.send_signal(before[name], signal.SIGHUP)
    noderuns.answers(run)

    now = rundirs.processes(run)
    assert {name: now[name] for name in ("shim", "supervisor", "trainer")} == {
        name: before[name] for name in ("shim", "supervisor", "trainer")
    }
    (run.code / "stop").touch()
    assert noderuns.ended(run).state == "succeeded"


def test_a_second_shim_is_refused_with_the_holders_pid(home: Path) -> None:
    run = noderuns.begin(home, shell(UNTIL_TOLD))
    shim = noderuns.role(run, "shim")

    with pytest.raises(LeaseHeld) as caught:
        process.start_shim(run)

    assert caught.value.pid == shim.pid


def test_never_two_trainers_under_random_kills(home: Path) -> None:
    """Every attempt writes its number when it begins and when it ends; no two may overlap."""
    text = "echo up; mkdir alone || echo TWO; sleep 0.2; rmdir alone; [ $HOLDFAST_ATTEMPT -ge 5 ]"
    run = noderuns.begin(home, shell(text), restart=rundirs.patient())
    rng = random.Random(1)

    for _ in range(KILLS):
        if rundirs.state(run).result or rundirs.state(run).attempt >= 4:
            break
        alive = rundirs.processes(run)
        name = rng.choice(["shim", "supervisor"])
        if name in alive:
            process.send_signal(alive[name], signal.SIGKILL)
        falls_at_s = time.monotonic() + rng.uniform(0.05, 0.5)
        until(lambda at_s=falls_at_s: time.monotonic() >= at_s)  # type: ignore[misc]
        if not any(process.alive(who) for role, who in rundirs.processes(run).items() if role != "trainer"):
            revive(run)  # two fell within moments, and there was nobody left to notice

    assert noderuns.ended(run, 60.0).state == "succeeded"
    assert b"TWO" not in run.output.read_bytes()


def revive(run: RunDir) -> None:
    """Start a shim unless one is up."""
    with contextlib.suppress(LeaseHeld):
        process.start_shim(run)
