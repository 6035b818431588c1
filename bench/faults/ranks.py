"""Two ranks save one checkpoint; one of them is killed at a random moment, the other a little later."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.engines import Engine
from bench.faults import Bench, Fault, Result, chance_of, result
from bench.faults.kill import random_moment

LATER_S = 0.5  # how long the other one has


class Ranks(Fault):
    title = "one of two ranks killed"

    def spares(self, engine: Engine) -> str:
        return "" if engine.ranks else "one rank writes for all"

    def trials(self, engine: Engine, bench: Bench, seeds: range) -> Iterator[Result]:
        for seed in seeds:
            chance = chance_of(engine, self, seed)
            with bench.trial(engine, world=2) as trial:
                trial.save()
                delay_s = random_moment(trial, chance)
                victim = chance.randrange(2)
                trial.kill_training((victim,))
                time.sleep(LATER_S)
                trial.kill_all()
                outcome = trial.load()
                trial.kill_all()
                yield result(trial, outcome, seed, f"rank {victim}, {delay_s * 1000:.1f} ms after a save")
