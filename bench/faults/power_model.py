"""Power loss, by calculation: the system calls of a training are recorded, and played up to a random one.

What is on the disk then is what was fsynced by then, and of the rest nothing, the names, or anything
(`bench/medium.py`). After the first acknowledged save everything counts as written back, as the kernel does within
half a minute.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from bench.engines import Engine
from bench.faults import Bench, Fault, Result, chance_of
from bench.judge import judge
from bench.medium import WAYS, Medium
from bench.record import STEPS, needs_strace, record
from bench.syscalls import Operation, Said


class PowerModel(Fault):
    title = "power loss (model)"

    def missing(self) -> str:
        return needs_strace()

    def trials(self, engine: Engine, bench: Bench, seeds: range) -> Iterator[Result]:
        with bench.trial(engine) as trial:
            recording = record(engine, trial.folder, trial.aside)
            trial.size_bytes = recording.size_bytes
            operations = recording.operations
            first = operations.index(Said("saved 1")) + 1
            for seed in seeds:
                chance = chance_of(engine, self, seed)
                cut, way = chance.randint(first, len(operations)), WAYS[seed % len(WAYS)]
                shutil.rmtree(trial.folder)
                engine.forget(trial.folder)
                medium = Medium(trial.folder)
                medium.play(operations[:first])
                medium.sync()
                medium.play(operations[first:cut])
                medium.write_out(way, chance)
                outcome = trial.load()
                trial.kill_all()
                verdict, detail = judge(outcome, saved=saved(operations[:cut]), begun=STEPS, damaged=False)
                what = f"before operation {cut} of {len(operations)}, {way}"
                yield Result(seed, verdict, detail, what)


def saved(operations: list[Operation]) -> list[int]:
    """Steps acknowledged by then."""
    lines = [each.line for each in operations if isinstance(each, Said)]
    return [int(line.split()[1]) for line in lines if line.startswith("saved")]
