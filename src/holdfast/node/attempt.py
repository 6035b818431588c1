"""The attempt that runs: what we may ask of it, and how it is ended."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

from holdfast.node import evidence, stacks, sweep
from holdfast.node.pages import Pages
from holdfast.plan import Plan
from holdfast.process import Identity, send_signal
from holdfast.runs import RunDir

PRESS_S = 1.0  # a kill that has not worked is repeated this often


@dataclass(frozen=True, slots=True)
class Trainer:
    """The process the shim started for `attempt`; 0 is setup."""

    attempt: int
    who: Identity


class Attempt:
    """At most one trainer; the shim sees to that."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self._run, self._plan = run, plan
        self.trainer: Trainer | None = None
        self.pages = Pages(run.runtime / "pages")
        self.oom_before = evidence.oom_count()
        self._end_at_s: float | None = None
        self._pending_save = 0

    def prepare(self, number: int) -> None:
        """Before a start: fresh pages and counters."""
        self.pages.clear()
        self.oom_before = evidence.oom_count()
        self._end_at_s = None
        if number:
            self._run.records.mkdir(mode=0o700, exist_ok=True)

    def adopt(self, number: int, who: Identity) -> None:
        """This is the trainer from now on."""
        self.trainer = Trainer(number, who)

    def gone(self, number: int) -> None:
        """The trainer of attempt `number` ended."""
        if self.trainer is not None and self.trainer.attempt == number:
            self.trainer = None

    def members(self) -> list[Identity]:
        """Every process of it, the trainer first."""
        if self.trainer is None:
            return sweep.members(self._run.root)
        first = self.trainer.who
        found = sweep.members(self._run.root, session=first.pid)
        return sorted(found, key=lambda who: (who != first, who.pid))

    def ask_save(self, number: int, *, step_s: float) -> None:
        """Request save `number`; repeated by `press` until the ranks are there to be asked."""
        self._pending_save = number
        if self.trainer is not None and self.pages.beats(self.trainer.attempt):
            self.pages.save(self.trainer.attempt, number, step_s=step_s)
            self._pending_save = 0

    def save_wanted(self) -> bool:
        """Whether a rank wants all of them to save."""
        return self.trainer is not None and not self._pending_save and self.pages.save_wanted(self.trainer.attempt)

    def ask_stop(self, grace_s: float, *, step_s: float) -> None:
        """Ask for a checkpoint and an end; whoever is still there after `grace_s` is killed by `press`."""
        self._end_at_s = time.monotonic() + grace_s
        if self.trainer is not None and not self.pages.stop(self.trainer.attempt, step_s=step_s):
            number = signal.Signals[self._plan.stop_signal]
            for who in self.members():  # no rank to ask: a program without the library, or one still importing it
                send_signal(who, number)

    def press(self, *, stopping: bool, step_s: float) -> None:
        """Regularly while the trainer lives: carry on what was asked."""
        if self.trainer is None:
            return
        number = self.trainer.attempt
        if self._pending_save:
            self.ask_save(self._pending_save, step_s=step_s)
        if stopping or any(beat.stop_wanted for beat in self.pages.beats(number)):
            self.pages.stop(number, step_s=step_s)
        if self._end_at_s is not None and time.monotonic() >= self._end_at_s:
            self._end_at_s = time.monotonic() + PRESS_S
            self.kill()

    def kill(self) -> None:
        """SIGKILL everything of it, now, and again from `press` while anything is left."""
        self._end_at_s = time.monotonic() + PRESS_S
        for who in self.members():
            send_signal(who, signal.SIGKILL)

    def end(self) -> None:
        """SIGTERM, then SIGKILL after a short grace."""
        sweep.end(self.members)
        self._end_at_s = time.monotonic() + PRESS_S

    def capture(self, *, fatal: bool) -> str:
        """Write the stacks of every process to a file; returns its path below the run directory."""
        number = self.trainer.attempt if self.trainer else 0
        text = stacks.capture(self.members(), self.pages.beats(number), self._run.output, fatal=fatal)
        self._run.stacks.mkdir(mode=0o700, exist_ok=True)
        path = self._run.stacks / f"attempt-{number:04d}.txt"
        with path.open("a") as file:
            file.write(text)
        return str(path.relative_to(self._run.root))
