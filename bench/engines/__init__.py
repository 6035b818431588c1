"""Checkpoint engines under test, a file each: how one trains with it, when it says "saved", how it loads the newest.

A new file with one subclass of `Engine` is in every fault, table and plot from then on.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

from bench import plugin
from bench.job import Job, Weights


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the engine says it loaded: the step (None: there was nothing), and what it said about others."""

    step: int | None
    said: list[str] = field(default_factory=list)


NOTHING = Loaded(None)


class Engine(ABC):
    """One way to keep checkpoints, used as its documentation says, with its default settings."""

    title: ClassVar[str]
    documented: ClassVar[str]  # where: address, or file and line of the package
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    preload: ClassVar[tuple[str, ...]] = ("torch",)  # modules imported once for all trials
    retention: ClassVar[str] = ""  # its own way to remove old checkpoints, as used here; empty when it has none
    ranks: ClassVar[bool] = False  # two ranks save one checkpoint
    reshards: ClassVar[bool] = True  # with `ranks`: one process loads what two have saved
    supervised: ClassVar[bool] = False  # something starts a killed training again
    moves_from_tmp: ClassVar[bool] = False  # writes in $TMPDIR and renames from there, so that is recorded too
    note: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """The file's."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def train(self, folder: Path, job: Job) -> None:
        """Train `job` and save each step below `folder`. Raises what the engine raises."""

    @abstractmethod
    def load(self, folder: Path, weights: Weights) -> Loaded:
        """Put the newest checkpoint into `weights`, by the engine's own rule for the newest."""

    def reload(self, folder: Path, weights: Weights) -> Loaded:
        """As `load`, while a training that saves is under way."""
        return self.load(folder, weights)

    def checkpoints(self, folder: Path) -> Path:
        """Where in `folder` the checkpoints lie, for engines that keep a log beside them."""
        return folder

    def forget(self, folder: Path) -> None:  # noqa: B027 (most keep nothing there)
        """Do away with what is kept in memory for `folder`, as a reboot does."""

    def versions(self) -> dict[str, str]:
        """Of its packages. Raises PackageNotFoundError."""
        return {package: version(package) for package in self.packages}

    def missing(self) -> str:
        """The first package that is not installed, or empty."""
        try:
            self.versions()
        except PackageNotFoundError as error:
            return str(error.name)
        return ""


def every() -> Mapping[str, Engine]:
    """All of them by name; holdfast first, then its reference, then the others."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    names.sort(key=lambda name: (not name.startswith("holdfast"), name != "reference"))
    return {name: named(name) for name in names}


def named(name: str) -> Engine:
    """One of them. Raises ModuleNotFoundError."""
    found: Engine = plugin.made(importlib.import_module(f"{__name__}.{name}"), Engine)
    return found


def newest(folder: Path, pattern: str, *, holding: str = "") -> Path | None:
    """The entry with the largest number in its name, `step-12` or `step-12.pt`; with `holding`, that has this file."""
    found = [path for path in folder.glob(pattern) if not holding or (path / holding).exists()]
    return max(found, key=number, default=None)


def number(path: Path) -> int:
    """The 12 of `step-12.pt`."""
    return int(path.name.partition(".")[0].rpartition("-")[2])
