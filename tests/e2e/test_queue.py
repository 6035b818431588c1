"""Runs that want the devices of one machine for themselves, and a program nvidia-smi that says it has some."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import process, runs
from holdfast.events import AttemptStarted, DevicesAwaited, DevicesTaken, RunCreated, StopRequested
from holdfast.node import client, gpus
from holdfast.runs import RunDir
from tests import noderuns, rundirs
from tests.fake_nvidia import FakeNvidia
from tests.waiting import until


@pytest.fixture
def smi(tmp_path: Path) -> FakeNvidia:
    return FakeNvidia(tmp_path / "bin")


@pytest.fixture
def single(tmp_path: Path) -> FakeNvidia:
    """A machine with one device."""
    return FakeNvidia(tmp_path / "bin", count=1)


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that belongs to no run."""
    with subprocess.Popen(["sleep", "600"]) as child:
        yield child.pid
        child.kill()


def begin(home: Path, smi: FakeNvidia, name: str, count: int, **plan: Any) -> RunDir:
    """A run of that name that wants `count` devices, and goes on until it is told to finish."""
    said = f'echo "$HOLDFAST_ATTEMPT on $CUDA_VISIBLE_DEVICES"; until [ -e "{home / name}" ]; do sleep 0.05; done'
    wants = f"{smi.kind.lower()}:{count}"
    return noderuns.begin(home, noderuns.shell(said), name=name, accelerators=wants, env=smi.env, **plan)


def finish(home: Path, run: RunDir) -> None:
    (home / run.id).touch()


def devices(run: RunDir, attempt: int = 1) -> list[str]:
    """The devices that an attempt has found, once it has begun."""

    def found() -> list[str]:
        lines = run.output.read_text().splitlines() if run.output.exists() else []
        return [line.removeprefix(f"{attempt} on ") for line in lines if line.startswith(f"{attempt} on ")]

    return until(found, what=lambda: f"attempt {attempt} of {run.id}: {rundirs.events(run)}")[0].split(",")


def queued(run: RunDir, ahead: int, why: str = "") -> None:
    """Once so many are before it, and it says what it waits for."""

    def found() -> bool:
        status = client.status(run)
        line = status["queue"]
        return bool(status["state"] == "queued" and line and line["ahead"] == ahead and line["why"].startswith(why))

    until(found, what=lambda: f"{run.id} queued: {rundirs.events(run)}")


def having(smi: FakeNvidia) -> list[str]:
    """Which run has which device."""
    claims = gpus.look().claims
    return [Path(claims.get(smi.uuid(number), "")).name for number in smi.all]


def line(smi: FakeNvidia) -> list[str]:
    """Who waits for one of these devices."""
    return [Path(one.dir).name for one in gpus.look().waiting if one.wants.kind == smi.kind.lower()]


def test_first_come_first_served_whatever_the_size(home: Path, smi: FakeNvidia) -> None:
    small = begin(home, smi, "small", 1)
    assert devices(small) == [smi.uuid(0)]
    large = begin(home, smi, "large", 2)
    queued(large, 0, "GPU 0: run small; GPU 1: free")
    late = begin(home, smi, "late", 1)
    queued(late, 1)
    until(lambda: (having(smi), line(smi)) == (["small", ""], ["large", "late"]))

    process.send_signal(noderuns.role(late, "supervisor"), signal.SIGKILL)
    finish(home, small)
    assert devices(large) == [smi.uuid(0), smi.uuid(1)]
    queued(late, 0, "GPU 0: run large; GPU 1: run large")
    finish(home, large)
    assert devices(late) == [smi.uuid(0)]
    finish(home, late)
    noderuns.ended(late)

    assert (having(smi), line(smi)) == (["", ""], [])


def test_devices_are_kept_whoever_dies_until_all_are_dead(home: Path, smi: FakeNvidia) -> None:
    first = begin(home, smi, "first", 2)
    both = devices(first)
    second = begin(home, smi, "second", 1)
    queued(second, 0)

    for role in ("supervisor", "shim"):
        victim = noderuns.role(first, role)
        noderuns.kill(victim)
        noderuns.replaced(first, role, victim)
    noderuns.kill(noderuns.role(first, "trainer"))

    assert devices(first, 2) == both
    until(lambda: (having(smi), line(smi)) == (["first", "first"], ["second"]))
    noderuns.end(first)
    assert devices(second) == [smi.uuid(0)]
    process.start_shim(first)
    queued(first, 0, "GPU 0: run second; GPU 1: free")
    finish(home, second)
    assert devices(first, 3) == both


def test_a_run_that_waits_for_somebody_elses_process_stops_at_once(
    home: Path, single: FakeNvidia, stranger: int
) -> None:
    single.compute({0: stranger})
    run = begin(home, single, "digits", 1)
    me = pwd.getpwuid(os.getuid()).pw_name
    queued(run, 0, f"GPU 0: {me}, process {stranger}")

    noderuns.answers(run)
    client.call(run, "POST", "/stop", {})

    assert noderuns.ended(run).state == "stopped"
    assert noderuns.of(run, AttemptStarted) == []
    assert line(single) == []


def test_a_lost_book_gives_nothing_away(home: Path, single: FakeNvidia) -> None:
    first = begin(home, single, "first", 1)
    devices(first)

    (runs.runtime_home() / "gpus.json").unlink()
    second = begin(home, single, "second", 1)

    queued(second, 0)
    until(lambda: having(single) == ["first"])
    assert noderuns.of(second, DevicesTaken) == []


def test_time_in_the_queue_is_no_time_of_the_run(home: Path, single: FakeNvidia) -> None:
    first = begin(home, single, "first", 1)
    devices(first)
    second = begin(home, single, "second", 1, max_duration_s=2.0, stop_grace_s=1.0)
    queued(second, 0)
    awaited_s = noderuns.of(second, DevicesAwaited)[0].t
    until(lambda: time.time() > awaited_s + 2.0)
    finish(home, first)

    stop = until(lambda: noderuns.of(second, StopRequested))[0]
    made, taken = noderuns.of(second, RunCreated)[0], noderuns.of(second, DevicesTaken)[0]
    assert stop.how == "max-duration"
    assert stop.t - made.t - (taken.t - awaited_s) > 2.0


def test_setup_sees_no_device(home: Path, smi: FakeNvidia) -> None:
    setup = tuple(noderuns.shell("echo setup on =$CUDA_VISIBLE_DEVICES="))
    run = begin(home, smi, "digits", 1, setup=setup)

    assert devices(run) == [smi.uuid(0)]
    assert "setup on ==\n" in run.output.read_text()
    finish(home, run)
    noderuns.ended(run)
