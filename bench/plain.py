"""What the same kills do to a loop with plain `torch.save`: newest file wins, written straight to its final name."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.live import environment, until

SCRIPT = Path(__file__).parent.parent / "examples" / "plain_torch_save" / "train.py"
EVERY = 20  # steps between two checkpoints
TRIES = 5  # to be quicker than a save of a few milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What came of it."""

    lost_steps: int  # done again after the kill at a random moment
    torn: str = ""  # name and size of the file that the kill during a save left, empty when none was torn
    error: str = ""  # last line of what the next start said to it
    weights: str = ""
    expected: str = ""  # weights of the uninterrupted run


class Loop:
    """The script, its folder, and the process that runs it at the moment."""

    def __init__(self, folder: Path, *, epochs: int) -> None:
        self.folder, self.epochs = folder, epochs
        shutil.rmtree(folder, ignore_errors=True)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """Begin, or begin again where the newest file says."""
        options = ("--epochs", str(self.epochs), "--every", str(EVERY), "--out", str(self.folder))
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *options],
            env=environment(self.folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        return self.process

    def finish(self) -> tuple[str, str]:
        """Wait for it to end; what it printed, and the last line of what it complained about."""
        assert self.process is not None
        printed, complaints = self.process.communicate(timeout=300)
        return printed, (complaints.strip().splitlines() or [""])[-1]

    def kill(self) -> None:
        """SIGKILL, which nothing can prepare for."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=60)

    def step(self) -> int:
        """Last step in its log, 0 before the first."""
        log = self.folder / "steps.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def files(self) -> list[Path]:
        """Its checkpoints, newest last."""
        return sorted(self.folder.glob("step-*.pt"))


def weights_in(printed: str) -> str:
    """The digest that a finished script prints last; empty when there is none."""
    return printed.rpartition("final weights sha256 ")[2].strip() if "final weights" in printed else ""


def torn_after_kill(loop: Loop) -> str:
    """Kill the loop as soon as its next file has a first byte; the name and size if that file is no whole one."""
    before = loop.files()
    until(lambda: new_bytes(loop, before), within_s=120, what="a save of the plain loop", every_s=0)
    loop.kill()
    newest = loop.files()[-1]
    whole = max((file.stat().st_size for file in before), default=0)
    size = newest.stat().st_size
    return f"{newest.name}: {size:,} of {whole:,} bytes" if size < whole else ""


def new_bytes(loop: Loop, before: list[Path]) -> int:
    """How many bytes its next checkpoint has by now."""
    return sum(file.stat().st_size for file in loop.files()[len(before) :])


def damage(folder: Path, rng: random.Random, *, epochs: int, tell: Callable[[str], None]) -> Damage:
    """One uninterrupted run; one killed at a random moment, then during a save, then brought back by hand."""
    tell("plain torch.save: uninterrupted")
    reference = Loop(folder / "uninterrupted", epochs=epochs)
    reference.start()
    expected = weights_in(reference.finish()[0])

    loop = Loop(folder / "killed", epochs=epochs)
    try:
        tell("plain torch.save: kill -9 at a random moment")
        at_step = rng.randrange(2 * EVERY + 1, 5 * EVERY)
        loop.start()
        until(lambda: loop.step() >= at_step, within_s=300, what=f"step {at_step} of the plain loop", every_s=0.005)
        loop.kill()
        lost = loop.step() - int(loop.files()[-1].stem.removeprefix("step-"))
        tell("plain torch.save: kill -9 while it saves")
        torn, error = tear(loop)
        tell("plain torch.save: a person has removed the torn file")
        loop.start()
        return Damage(lost_steps=lost, torn=torn, error=error, weights=weights_in(loop.finish()[0]), expected=expected)
    finally:
        loop.kill()


def tear(loop: Loop) -> tuple[str, str]:
    """Kill during saves until one is torn; what is torn and what the next start says to it. Removes the torn file."""
    for _ in range(TRIES):
        loop.start()
        if torn := torn_after_kill(loop):
            loop.start()
            error = loop.finish()[1]
            loop.files()[-1].unlink()
            return torn, error
    return "", ""
