"""A run started through the public command line, seen from outside: its processes, its progress, its records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.heartbeat import Beat, beat_at, page_path
from holdfast.process import Identity, alive
from holdfast.runs import RunDir

HOLDFAST = (sys.executable, "-m", "holdfast")
POLL_S = 0.02


class TooSlow(Exception):
    """What was waited for did not happen in time."""


def until(condition: Callable[[], Any], *, within_s: float, what: str, every_s: float = POLL_S) -> Any:
    """The first true value of `condition`. Raises TooSlow. `every_s` 0 looks without a pause."""
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        if time.monotonic() > deadline_s:
            raise TooSlow(f"{what} did not happen within {within_s:.0f} s")
        if every_s:
            time.sleep(every_s)
    return found


def environment(home: Path) -> dict[str, str]:
    """Ours, with runs below `home` and this Python first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "HOLDFAST_HOME": str(home), "PATH": path}


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A run by its id and directory; every question is answered from what the run itself writes."""

    id: str
    dir: Path
    home: Path

    @property
    def folder(self) -> RunDir:
        """Where in it everything lies."""
        return RunDir(self.dir)

    def call(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`holdfast VERB RUN …`, its output captured."""
        return subprocess.run(
            [*HOLDFAST, verb, self.id, *arguments],
            env=environment(self.home),
            capture_output=True,
            text=True,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """`holdfast status RUN --json`."""
        return json.loads(self.call("status", "--json").stdout)

    def waiter(self) -> subprocess.Popen[bytes]:
        """`holdfast wait RUN`, started: it leaves with the run's exit code when the run has ended."""
        return subprocess.Popen(
            [*HOLDFAST, "wait", self.id],
            env=environment(self.home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def output(self) -> str:
        """Everything that the attempts have printed."""
        return self.folder.output.read_text(errors="replace") if self.folder.output.exists() else ""

    def beat(self) -> Beat | None:
        """The heartbeat of rank 0, None before there is one."""
        return beat_at(page_path(self.folder.runtime, 0))

    def trainer(self) -> Identity | None:
        """The training process that registered in the heartbeat page, if it lives."""
        beat = self.beat()
        if beat is None:
            return None
        found = Identity(beat.pid, beat.start_ticks)
        return found if alive(found) else None

    def process(self, role: str) -> Identity | None:
        """The living shim, supervisor or archiver."""
        try:
            known = json.loads((self.folder.runtime / "processes.json").read_text())
        except (OSError, ValueError):
            return None
        entry = known.get(role)
        if not entry:
            return None
        found = Identity(entry["pid"], entry["start_ticks"])
        return found if alive(found) else None

    def saving(self) -> bool:
        """Whether the archiver is writing a checkpoint at this moment."""
        try:
            return next(os.scandir(self.folder.checkpoints / "tmp"), None) is not None
        except OSError:
            return False

    def records(self) -> Iterator[dict[str, Any]]:
        """What the library wrote in rank 0: step records and events, in order; a torn last line is left out."""
        path = self.folder.records / "rank-00000.jsonl"
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:
                yield json.loads(line)


def start(folder: Path, *arguments: str, home: Path) -> LiveRun:
    """`holdfast run -d --json …` in `folder`. Raises CalledProcessError."""
    done = subprocess.run(
        [*HOLDFAST, "run", "-d", "--json", *arguments],
        cwd=folder, env=environment(home), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    made = json.loads(done.stdout)
    return LiveRun(made["run"], Path(made["dir"]), home)


def kill(target: Identity) -> bool:
    """SIGKILL to exactly this process, never to another that got its number; False when it was gone."""
    try:
        descriptor = os.pidfd_open(target.pid)
    except ProcessLookupError:
        return False
    try:
        if not alive(target):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)


def children(parent: Identity) -> list[int]:
    """Pids of the direct children: for a trainer, the workers of its loaders and what else it has started."""
    pids: list[int] = []
    try:
        for task in (Path("/proc") / str(parent.pid) / "task").iterdir():
            pids += [int(pid) for pid in (task / "children").read_text().split()]
    except OSError:
        return []
    return pids
