"""SIGKILL to the training process at a random moment of back-to-back saves; what it has started may finish its work."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from bench.engines import Engine
from bench.faults import Bench, Fault, Result, chance_of, first_saves, result
from bench.trials import Trial

SETTLE_S = 15  # the most that helpers of a dead training process get
SAVES = 3  # acknowledged before


class Kill(Fault):
    title = "kill -9 of training"

    def spares(self, engine: Engine) -> str:
        return "starts training again: see soak-kills.json" if engine.supervised else ""

    def trials(self, engine: Engine, bench: Bench, seeds: range) -> Iterator[Result]:
        for seed in seeds:
            chance = chance_of(engine, self, seed)
            with bench.trial(engine) as trial:
                trial.save()
                delay_s = random_moment(trial, chance)
                trial.kill_training()
                trial.settle(within_s=SETTLE_S)
                yield result(trial, trial.load(), seed, f"{delay_s * 1000:.1f} ms after save {SAVES}")


def random_moment(trial: Trial, chance: random.Random, *, saves: int = SAVES) -> float:
    """Wait for `saves` acknowledged saves, then for a random part of one and a half more; returns that, in seconds."""
    first_saves(trial, saves - 1)
    began_s = time.monotonic()
    first_saves(trial, saves)
    delay_s = 1.5 * chance.random() * max(time.monotonic() - began_s, 0.005)
    time.sleep(delay_s)
    return delay_s
