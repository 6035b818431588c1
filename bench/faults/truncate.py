"""One file is cut short while nothing runs."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

from bench.engines import Engine
from bench.faults import Bench, Fault, Result
from bench.faults.flip import damage


class Truncate(Fault):
    title = "truncated file"

    def trials(self, engine: Engine, bench: Bench, seeds: range) -> Iterator[Result]:
        yield from damage(self, engine, bench, seeds, cut)


def cut(path: Path, chance: random.Random) -> str:
    """To a random length, now and then to nothing or by one byte; in words."""
    size = path.stat().st_size
    left = chance.choice([chance.randrange(size), chance.randrange(size), 0, size - 1])
    os.truncate(path, left)
    return f"cut to {left} of {size} bytes"
