"""SIGKILL to everything that belongs to the training, at a random moment of back-to-back saves."""

from __future__ import annotations

from collections.abc import Iterator

from bench.engines import Engine
from bench.faults import Bench, Fault, Result, chance_of, result
from bench.faults.kill import SAVES, random_moment


class KillAll(Fault):
    title = "kill -9 of everything"

    def trials(self, engine: Engine, bench: Bench, seeds: range) -> Iterator[Result]:
        for seed in seeds:
            chance = chance_of(engine, self, seed)
            with bench.trial(engine) as trial:
                trial.save()
                delay_s = random_moment(trial, chance)
                trial.kill_all()
                yield result(trial, trial.load(), seed, f"{delay_s * 1000:.1f} ms after save {SAVES}")
