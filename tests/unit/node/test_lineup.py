"""How a run asks for its devices: what the journal is told, and when."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.events import AttemptStarted, DevicesAwaited, DevicesTaken
from holdfast.lifecycle import decide
from holdfast.node import gpus, lineup, nvidia
from holdfast.node.lineup import Lineup
from holdfast.plan import Plan
from holdfast.runs import RunDir
from holdfast.state import Policy, State
from tests import rundirs
from tests.fake_nvidia import FakeNvidia, attempt_of
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


@pytest.fixture
def other(tmp_path: Path, smi: FakeNvidia) -> Iterator[str]:
    """The folder of another run that trains on the device."""
    folder = str(tmp_path / "other")
    with attempt_of(folder, CUDA_VISIBLE_DEVICES=smi.uuid(0)):
        yield folder
    gpus.change(lambda book: book.without(folder))


def test_what_was_seen_too_long_ago_gives_nobody_a_device(
    run: RunDir, smi: FakeNvidia, pids: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lineup, "TELL_S", 0.0)
    folder = str(tmp_path / "other")
    with attempt_of(folder):
        gpus.change(lambda book: book.given(folder, [smi.uuid(0)]))
        asking, state = line(run, smi), rundirs.state(run)
        awaited = next_event(asking, state)
        monkeypatch.setattr(lineup, "FRESH_S", 0.0)
        smi.compute({0: pids[0]})

        gpus.change(lambda book: book.without(folder))

        assert isinstance(awaited, DevicesAwaited) and awaited.why == "GPU 0: run other"
        state = after(state, awaited)
        while not (said := next_event(asking, state)).why.endswith(f", process {pids[0]}"):
            state = after(state, said)
            assert said.why == "GPU 0: free"  # by the book, and by the look of before


def test_a_device_on_which_another_run_trains_is_not_free_whatever_the_book_has_lost(
    run: RunDir, smi: FakeNvidia, other: str
) -> None:
    assert isinstance(next_event(line(run, smi), rundirs.state(run)), DevicesAwaited)


def test_who_goes_blind_leaves_the_line(
    run: RunDir, smi: FakeNvidia, pids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineup, "LOOK_S", 0.1)
    monkeypatch.setattr(lineup, "TELL_S", 0.0)
    smi.compute({0: pids[0]})
    with attempt_of(str(run.root)):
        asking, state = line(run, smi), rundirs.state(run)
        state = after(state, next_event(asking, state))
        assert str(run.root) in [one.dir for one in gpus.look().waiting]

        smi.tell("fails", "broken")

        assert "broken" in next_event(asking, state).why
        assert str(run.root) not in [one.dir for one in gpus.look().waiting]


@pytest.mark.parametrize("trains", [True, False])
def test_who_trains_has_the_device_whoever_took_it_when_the_book_was_lost(
    run: RunDir, smi: FakeNvidia, other: str, trains: bool
) -> None:
    started = AttemptStarted(attempt=1, pid=1, start_ticks=1, log_offset=0, resume_step=0, t=1.0) if trains else None
    state = replace(rundirs.state(run), devices=(smi.uuid(0),), started=started)
    gpus.change(lambda book: book.given(other, [smi.uuid(0)]))
    with attempt_of(str(run.root)):
        line(run, smi).keep(state)

        assert gpus.look().claims[smi.uuid(0)] == (str(run.root) if trains else other)
