"""One bit of one file is flipped while nothing runs: file after file from the last written on, half near an end."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.engines import Engine
from bench.faults import Bench, DoesNotSave, Fault, Result, chance_of, result
from bench.trials import Trial

STEPS = 3
EDGE = 4096  # bytes
SETTLE_S = 15


class Flip(Fault):
    title = "flipped bit"

    def trials(self, engine: Engine, bench: Bench, seeds: range) -> Iterator[Result]:
        yield from damage(self, engine, bench, seeds, flip_bit)


def damage(
    fault: Fault, engine: Engine, bench: Bench, seeds: range, change: Callable[[Path, random.Random], str]
) -> Iterator[Result]:
    """Save in peace once; then for each seed `change` one file of a fresh copy and load."""
    with bench.trial(engine) as trial:
        save_in_peace(trial)
        kept = trial.folder.with_name("kept")
        shutil.copytree(trial.folder, kept, symlinks=True)
        for seed in seeds:
            chance = chance_of(engine, fault, seed)
            shutil.rmtree(trial.folder)
            shutil.copytree(kept, trial.folder, symlinks=True)
            engine.forget(trial.folder)
            path = pick(trial.folder, seed)
            what = f"{path.relative_to(trial.folder)} {change(path, chance)}"
            outcome = trial.load()
            trial.kill_all()
            yield result(trial, outcome, seed, what, damaged=True)


def save_in_peace(trial: Trial) -> None:
    """A whole training. Raises DoesNotSave."""
    trial.save(last=STEPS)
    told = trial.until(lambda told: told.done, within_s=120)
    trial.settle(within_s=SETTLE_S)
    if not told.done or not told.saved:
        raise DoesNotSave(f"{told.saved}: {told.refused or trial.said()[-500:]}")


def pick(folder: Path, seed: int) -> Path:
    """The files in turn, those that hold something; the last written first, since the newest save is among them."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size]
    files.sort(key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
    return files[seed % len(files)]


def flip_bit(path: Path, chance: random.Random) -> str:
    """Anywhere, or near one end; the place in words."""
    size = path.stat().st_size
    edge = min(size, EDGE)
    places = (chance.randrange(size), chance.choice([chance.randrange(edge), size - 1 - chance.randrange(edge)]))
    at, bit = chance.choice(places), chance.randrange(8)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
    return f"byte {at} of {size}, bit {bit}"
