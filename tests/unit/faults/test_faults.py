"""Every fault against processes that are only there to be broken."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from holdfast import faults
from holdfast.events import AttemptEnded, AttemptStarted, CheckpointCommitted, CheckpointFailed, Event, HangDetected
from holdfast.faults import base, fill_disk, stop_trainer
from holdfast.faults.base import ROLES, CannotInject, Look, Target, lost_steps
from holdfast.heartbeat import Beat, Handlers, Outcome, Page, Phase, page_path
from holdfast.process import Identity, identity, stat_fields
from holdfast.runs import RunDir, make_runtime
from tests.needs import need
from tests.waiting import until

Victims = tuple[Target, dict[str, subprocess.Popen[bytes]]]


@pytest.fixture
def victims(monkeypatch: pytest.MonkeyPatch) -> Iterator[Victims]:
    """A run whose four processes only sleep, and what a save request calls."""
    folder = Path(tempfile.mkdtemp(prefix="hf-"))
    run = RunDir(folder / "digits")
    run.checkpoints.mkdir(parents=True)
    watchdog = {"action": "restart", "progress_s": None}
    run.plan.write_text(json.dumps({"checkpoint": {"dir": str(run.checkpoints)}, "watchdog": watchdog}))
    run.journal.touch()
    children = {role: subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for role in ROLES}
    found = {role: identity(child.pid) for role, child in children.items()}
    written = {role: {"pid": one.pid, "start_ticks": one.start_ticks} for role, one in found.items() if one}
    (make_runtime(run) / "processes.json").write_text(json.dumps({"boot": "b", **written, "spawning": None}))
    yield Target(run, lambda: None), children
    for child in children.values():
        child.kill()
        child.communicate()
    shutil.rmtree(run.runtime)
    shutil.rmtree(folder)


def beat(step: int, attempt: int = 1, first: int = 0) -> Beat:
    numbers = dict.fromkeys(Beat.__slots__, 0)
    named = {"step": step, "attempt": attempt, "first_step": first, "phase": Phase.RUNNING, "outcome": Outcome.NONE}
    return Beat(**{**numbers, **named, "handlers": Handlers.NONE})


def look(*events: Event, step: int = 100, t: float = 0.0, **processes: int) -> Look:
    """All four processes alive and answering; `trainer=2` gives that role another identity."""
    pids = {**dict.fromkeys(ROLES, 1), **processes}
    return Look(
        t=t,
        processes={role: Identity(pid, 0) for role, pid in pids.items() if pid},
        answering=frozenset({"shim.sock", "control.sock", "archiver.sock"}),
        beat=beat(step),
        events=events,
        plan={"watchdog": {"action": "restart", "progress_s": None}},
    )


def test_each_file_is_a_fault_and_each_fault_has_the_whole_interface() -> None:
    assert {"kill_trainer", "kill_supervisor", "kill_archiver", "kill_shim", "stop_trainer", "fill_disk"} <= set(
        faults.names()
    )
    for name in faults.names():
        fault = faults.load(name)
        assert isinstance(fault, ModuleType)
        assert name == fault.NAME
        assert fault.SAYS
        assert all(callable(getattr(fault, part)) for part in ("inject", "bitten", "recovered"))


@pytest.mark.parametrize("role", ROLES)
def test_kill_ends_that_process_and_no_other(victims: Victims, role: str) -> None:
    target, children = victims
    fault = faults.load(f"kill_{role}")
    before = target.look(0.0)

    fault.inject(target)()

    assert children[role].wait(10) == -9
    assert fault.bitten(before, target.look(1.0))
    assert set(target.look(1.0).processes) == set(ROLES) - {role}
    assert not fault.recovered(before, target.look(1.0)).ok


def test_a_process_that_is_gone_cannot_be_broken(victims: Victims) -> None:
    target, children = victims
    children["archiver"].kill()
    children["archiver"].wait()

    with pytest.raises(CannotInject, match="no live archiver"):
        faults.load("kill_archiver").inject(target)


def test_stop_freezes_the_trainer_until_undone(victims: Victims) -> None:
    target, children = victims

    def state() -> str:
        return (stat_fields(children["trainer"].pid) or ["gone"])[0]

    undo = stop_trainer.inject(target)
    until(lambda: state() == "T", what="a stopped trainer")
    undo()
    until(lambda: state() in "SR", what="a trainer that goes on")


def test_the_trainer_is_stopped_in_a_step_and_not_while_it_saves(
    victims: Victims, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, children = victims
    who = identity(children["trainer"].pid)
    assert who is not None
    page, waits = Page(page_path(target.run.runtime, 0)), []
    page.begin(pid=who.pid, start_ticks=who.start_ticks, rank=0, world=1, attempt=1)
    page.set(phase=Phase.SAVING)

    def saved(seconds: float) -> None:
        waits.append(seconds)
        page.set(phase=Phase.RUNNING)

    monkeypatch.setattr(stop_trainer, "sleep", saved)
    undo = stop_trainer.inject(target)
    page.close()

    assert len(waits) == 1
    until(lambda: (stat_fields(who.pid) or ["gone"])[0] == "T", what="a stopped trainer")
    undo()


def test_a_full_disk_on_a_shared_file_system_only_denies_the_archiver(
    victims: Victims,
) -> None:
    target, children = victims
    asked: list[str] = []
    target = replace(target, save=lambda: asked.append("save"))
    pid = children["archiver"].pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)

    undo = fill_disk.inject(target)
    denied = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    undo()

    assert denied == (4096, before[1])
    assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == before
    assert asked == ["save", "save"]
    assert list(target.run.checkpoints.iterdir()) == []


def test_a_small_file_system_of_its_own_is_really_filled(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "root, to mount a tmpfs")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)], check=False)
    need(done.returncode == 0, "a machine that lets us mount a tmpfs")
    try:
        assert fill_disk.is_small(tmp_path)
        undo = fill_disk.fill(tmp_path)
        full = os.statvfs(tmp_path).f_bavail
        undo()
        undo()
        assert full == 0
        assert os.statvfs(tmp_path).f_bavail > 0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_root_file_system_is_never_filled() -> None:
    assert not fill_disk.is_small(Path("/"))


REPLACED: list[tuple[str, Look, bool]] = [
    ("kill_supervisor", look(step=101, supervisor=2), True),
    ("kill_supervisor", look(step=101), False),
    ("kill_supervisor", look(step=100, supervisor=2), False),
    ("kill_supervisor", look(step=101, supervisor=2, trainer=2), False),
    ("kill_supervisor", replace(look(step=101, supervisor=2), answering=frozenset()), False),
    ("kill_archiver", look(step=101, archiver=2), True),
    ("kill_shim", look(step=101, shim=2), True),
    ("kill_trainer", replace(look(trainer=2), beat=beat(91, attempt=2, first=90)), True),
    ("kill_trainer", replace(look(trainer=2), beat=beat(90, attempt=2, first=90)), False),
    ("kill_trainer", look(step=101), False),
    ("kill_trainer", replace(look(), processes={}), False),
]


@pytest.mark.parametrize(("name", "now", "expected"), REPLACED)
def test_what_counts_as_recovered(name: str, now: Look, expected: bool) -> None:
    assert faults.load(name).recovered(look(), now).ok is expected


HANG = HangDetected(attempt=1, silent_s=9, allowed_s=5, step=100)
FAILED = CheckpointFailed(step=101, reason="drill", message="no space left on device")
SAVED = CheckpointCommitted(step=109, term=1, sequence=1, size_bytes=1, reason="drill")


@pytest.mark.parametrize(
    ("progress_s", "now", "expected"),
    [
        (None, look(t=1.0), False),
        (None, look(t=6.0), True),
        (10.0, look(t=6.0), False),
        (10.0, look(HANG, t=11.0), False),
        (10.0, look(HANG, t=11.0, trainer=2), True),
    ],
)
def test_a_short_watchdog_is_waited_for(progress_s: float | None, now: Look, expected: bool) -> None:
    before = replace(look(), plan={"watchdog": {"action": "restart", "progress_s": progress_s}})

    assert stop_trainer.bitten(before, now) is expected


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (look(step=110), False),
        (look(FAILED, step=110), False),
        (look(SAVED, FAILED, step=110), False),
        (look(FAILED, SAVED, step=110), True),
        (look(FAILED, SAVED, step=110, trainer=2), False),
    ],
)
def test_a_full_disk_is_survived_when_saving_works_again(now: Look, expected: bool) -> None:
    assert fill_disk.recovered(look(), now).ok is expected


def test_lost_steps_are_those_done_twice() -> None:
    ended = AttemptEnded(attempt=1, exit_class="killed", status=-9, step=120, committed_step=100)
    again = AttemptStarted(attempt=2, pid=2, start_ticks=1, log_offset=0, resume_step=100)

    assert lost_steps(look(), look(ended, again)) == 20
    assert lost_steps(look(ended, again), look(ended, again)) == 0


def test_listens_tells_a_socket_from_a_leftover_file(tmp_path: Path) -> None:
    (tmp_path / "control.sock").touch()

    assert not base.listens(tmp_path / "control.sock")
    assert not base.listens(tmp_path / "nothing.sock")
