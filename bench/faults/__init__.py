"""Faults, a file each: what happens to the processes, the files or the disk of a training that saves.

A new file with one subclass of `Fault` is in the table from then on.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench import plugin
from bench.engines import Engine
from bench.job import Told
from bench.judge import Outcome, Verdict, judge
from bench.trials import Trial

FIRST_SAVES_S = 120  # the most that the first few saves may take


@dataclass(frozen=True, slots=True)
class Result:
    """One trial; `seed` repeats it."""

    seed: int
    verdict: Verdict
    detail: str
    what: str  # what was done, with the numbers


@dataclass(frozen=True, slots=True)
class Bench:
    """Where trials lie and how big a state they save."""

    folder: Path
    size_bytes: int

    @contextmanager
    def trial(self, engine: Engine, *, folder: Path | None = None, world: int = 1) -> Iterator[Trial]:
        """A trial in a new folder, or in `folder`; nothing is left of it."""
        made = folder or Path(tempfile.mkdtemp(prefix=f"{engine.name}-", dir=self.folder)) / "state"
        made.mkdir(exist_ok=True)
        trial = Trial(engine, made, size_bytes=self.size_bytes, world=world)
        try:
            yield trial
        finally:
            trial.end()
            shutil.rmtree(made if folder else made.parent, ignore_errors=True)


class Fault(ABC):
    """One thing that goes wrong."""

    title: ClassVar[str]

    @property
    def name(self) -> str:
        """The file's."""
        return type(self).__module__.rpartition(".")[2]

    def missing(self) -> str:
        """What this machine lacks for it, or empty."""
        return ""

    def spares(self, engine: Engine) -> str:
        """Why this engine is not put to it, or empty."""
        return ""

    @abstractmethod
    def trials(self, engine: Engine, bench: Bench, seeds: range) -> Iterator[Result]:
        """One result a seed."""


def chance_of(engine: Engine, fault: Fault, seed: int) -> random.Random:
    """Everything that is random in a trial."""
    return random.Random(f"{engine.name} {fault.name} {seed}")


def result(
    trial: Trial, outcome: Outcome, seed: int, what: str, *, damaged: bool = False, told: Told | None = None
) -> Result:
    """Judge by everything that the training has told, or by what it had `told` by some moment."""
    told = told or trial.told()
    verdict, detail = judge(outcome, saved=told.saved, begun=max(told.begun, default=0), damaged=damaged)
    return Result(seed, verdict, detail, what)


class DoesNotSave(Exception):
    """The engine did not get through its first saves in peace."""


def first_saves(trial: Trial, count: int) -> None:
    """Until that many are acknowledged. Raises DoesNotSave."""
    told = trial.until(lambda told: len(told.saved) >= count, within_s=FIRST_SAVES_S)
    if len(told.saved) < count:
        raise DoesNotSave(f"{len(told.saved)} of {count} saves: {told.refused or trial.said()[-500:]}")


def every() -> Mapping[str, Fault]:
    """All of them by name."""
    names = [found.name for found in pkgutil.iter_modules(__path__)]
    return {name: plugin.made(importlib.import_module(f"{__name__}.{name}"), Fault) for name in names}
