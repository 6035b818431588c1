"""Runs of plain programs under the real shim and supervisor, for the e2e tests of the node side."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from holdfast import process
from holdfast.events import AttemptStarted, Event, RunEnded
from holdfast.node import client, sweep
from holdfast.runs import RunDir
from tests import rundirs
from tests.waiting import until

Kind = TypeVar("Kind", bound=Event)


@contextmanager
def home(base: Path) -> Iterator[Path]:
    """A HOLDFAST_HOME of our own; whatever still lives at the end is ended."""
    before = os.environ.get("HOLDFAST_HOME")
    os.environ["HOLDFAST_HOME"] = str(base)
    try:
        yield base
    finally:
        for path in (base / "runs").glob("*"):
            end(RunDir(path))
        if before is None:
            del os.environ["HOLDFAST_HOME"]
        else:
            os.environ["HOLDFAST_HOME"] = before


def end(run: RunDir) -> None:
    """End everything of `run`, again and again, since its processes bring each other back."""

    def nobody() -> bool:
        found = {*rundirs.processes(run).values(), *sweep.members(run.root), *_roles(run)}
        left = [who for who in found if process.alive(who)]
        for who in left:
            process.send_signal(who, signal.SIGKILL)
        return not left and not _starting(run)

    until(nobody)
    shutil.rmtree(run.runtime, ignore_errors=True)


def _roles(run: RunDir) -> list[process.Identity]:
    """Processes of ours by their command: also one that is not written down yet, or no longer."""
    marks = [f"node\0{role}\0{run.root}\0".encode() for role in ("shim", "supervisor", "archiver")]
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    found = [process.identity(pid) for pid in pids if any(mark in _command(pid) for mark in marks)]
    return [who for who in found if who is not None]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _starting(run: RunDir) -> bool:
    """Whether somebody holds the run's lock: one of ours that is about to begin."""
    with run.lock.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def begin(base: Path, argv: list[str], **plan: Any) -> RunDir:
    """Make a run and start it."""
    run = rundirs.make(base, argv, **plan)
    process.start_shim(run)
    return run


def shell(text: str) -> list[str]:
    """A program: this shell script."""
    return ["sh", "-c", text]


def python(text: str) -> list[str]:
    """A program: this Python script, which finds holdfast where we do."""
    return [sys.executable, "-c", text]


def ended(run: RunDir, within_s: float = 60.0) -> RunEnded:
    """How the run ended, once it has and everything of ours has left."""
    result = until(lambda: rundirs.state(run).result, within_s)
    until(lambda: not rundirs.processes(run), within_s)
    assert result is not None
    return result


def attempt(run: RunDir, number: int, within_s: float = 60.0) -> AttemptStarted:
    """The start of attempt `number`, once it happened and its output says `up`."""
    started = until(lambda: next((e for e in of(run, AttemptStarted) if e.attempt == number), None), within_s)
    assert started is not None
    until(lambda: b"up\n" in run.output.read_bytes()[started.log_offset :], within_s)
    return started


def of(run: RunDir, kind: type[Kind]) -> list[Kind]:
    """The events of one kind."""
    return [event for event in rundirs.events(run) if isinstance(event, kind)]


def role(run: RunDir, name: str) -> process.Identity:
    """The process in that role, once there is one."""
    return until(lambda: rundirs.processes(run).get(name))


def replaced(run: RunDir, name: str, old: process.Identity) -> process.Identity:
    """The process that took over the role from `old`."""

    def other() -> process.Identity | None:
        now = rundirs.processes(run).get(name)
        return None if now == old else now

    found = until(other)
    assert found is not None
    return found


def answers(run: RunDir) -> dict[str, Any]:
    """Wait until the supervisor answers; its status."""

    def ask() -> dict[str, Any] | None:
        try:
            return client.call(run, "GET", "/status")
        except client.NotLive:
            return None

    return until(ask) or {}


def kill(who: process.Identity, number: int = signal.SIGKILL) -> Callable[[], bool]:
    """Send the signal now; the answer says whether it is gone."""
    process.send_signal(who, number)
    return lambda: not process.alive(who)
