"""How a run asks for its devices: what the journal is told, and when."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.events import DevicesAwaited, DevicesTaken
from holdfast.lifecycle import Policy, State, decide
from holdfast.node import gpus, lineup, nvidia
from holdfast.node.lineup import Lineup
from holdfast.plan import Plan
from holdfast.runs import RunDir
from tests import rundirs
from tests.fake_nvidia import FakeNvidia
from tests.waiting import until


@pytest.fixture
def smi(tmp_path: Path) -> FakeNvidia:
    return FakeNvidia(tmp_path / "bin", count=1)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    made = rundirs.make(tmp_path, ["true"])
    yield made
    gpus.change(lambda book: book.without(str(made.root)))


@pytest.fixture
def pids() -> Iterator[list[int]]:
    """Processes that belong to no run."""
    with subprocess.Popen(["sleep", "600"]) as one, subprocess.Popen(["sleep", "600"]) as other:
        yield [one.pid, other.pid]
        one.kill()
        other.kill()


def line(run: RunDir, smi: FakeNvidia) -> Lineup:
    return Lineup(run, replace(plan_of(run), accelerators=f"{smi.kind}:1", env=smi.env))


def plan_of(run: RunDir) -> Plan:
    return Plan.from_json(json.loads(run.plan.read_text()))


def next_event(asking: Lineup, state: State) -> DevicesAwaited | DevicesTaken:
    found = until(lambda: asking.ask(state))
    assert found is not None
    return found


def after(state: State, event: DevicesAwaited | DevicesTaken) -> State:
    return decide(state, event, Policy())[0]


def test_a_free_device_is_taken_and_had_from_then_on(run: RunDir, smi: FakeNvidia) -> None:
    asking, state = line(run, smi), rundirs.state(run)
    taken = next_event(asking, state)
    assert isinstance(taken, DevicesTaken)
    assert (taken.devices, taken.names) == ([smi.uuid(0)], [f"0 NVIDIA {smi.kind} 80GB"])

    state = after(state, taken)

    assert (asking.ask(state), asking.waits) == (None, False)


def test_a_run_that_wants_none_is_never_asked_for_any(run: RunDir) -> None:
    asking = Lineup(run, plan_of(run))

    assert (asking.ask(rundirs.state(run)), asking.waits) == (None, False)


def test_it_is_our_turn_once_others_have_left(
    run: RunDir, smi: FakeNvidia, pids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineup, "LOOK_S", 0.1)
    smi.compute({0: pids[0]})
    asking, state = line(run, smi), rundirs.state(run)
    awaited = next_event(asking, state)
    assert isinstance(awaited, DevicesAwaited)
    assert awaited.why.endswith(f", process {pids[0]}")

    smi.compute({})

    assert isinstance(next_event(asking, after(state, awaited)), DevicesTaken)


def test_processes_that_come_and_go_are_told_now_and_then(
    run: RunDir, smi: FakeNvidia, pids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineup, "LOOK_S", 0.1)
    smi.compute({0: pids[0]})
    asking, state = line(run, smi), rundirs.state(run)
    state = after(state, next_event(asking, state))
    smi.compute({0: pids[1]})
    looks, told = smi.looks + 3, []

    until(lambda: told.append(asking.ask(state)) or smi.looks > looks)
    assert not any(told)
    monkeypatch.setattr(lineup, "TELL_S", 0.0)

    again = next_event(asking, state)
    assert isinstance(again, DevicesAwaited) and again.why.endswith(f", process {pids[1]}")


def test_who_cannot_see_devices_is_in_nobodys_way(
    run: RunDir, smi: FakeNvidia, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineup, "LOOK_S", 0.1)
    monkeypatch.setattr(nvidia, "DEADLINE_S", 0.3)
    smi.tell("hangs", "")
    asking, state = line(run, smi), rundirs.state(run)

    awaited = next_event(asking, state)

    assert isinstance(awaited, DevicesAwaited)
    assert awaited.why == "nvidia-smi has not answered within 0.3 s"
    (smi.folder / "hangs").unlink()
    assert isinstance(next_event(asking, after(state, awaited)), DevicesTaken)
