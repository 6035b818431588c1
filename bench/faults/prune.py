"""Another process loads again and again while training saves and the engine removes, or overwrites, what is old."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.engines import Engine
from bench.faults import Bench, Fault, Result, chance_of, first_saves
from bench.judge import judge


class Prune(Fault):
    title = "loading while it prunes"

    def spares(self, engine: Engine) -> str:
        return "" if engine.retention else "removes nothing"

    def trials(self, engine: Engine, bench: Bench, seeds: range) -> Iterator[Result]:
        with bench.trial(engine) as trial:
            trial.save()
            first_saves(trial, 2)
            for seed in seeds:
                first_saves(trial, len(trial.told().saved) + 1)  # it saves still
                time.sleep(chance_of(engine, self, seed).random() * 0.1)
                before = trial.told()
                outcome = trial.load(live=True)
                begun = max(trial.told().begun, default=0)
                verdict, detail = judge(outcome, saved=before.saved, begun=begun, damaged=False)
                yield Result(seed, verdict, detail, f"after save {max(before.saved)}")
