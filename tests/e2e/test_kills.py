"""Random kill -9 of trainer, workers, shim, supervisor and archiver: the training ends as if nothing had happened."""

from __future__ import annotations

import os
import secrets

import pytest

from bench import kills
from tests.e2e.box import Box

KILLS = int(os.environ.get("HOLDFAST_KILLS", "20"))


@pytest.mark.e2e
@pytest.mark.timeout(60 + 30 * KILLS)
def test_a_training_killed_at_random_moments_ends_with_the_same_bits(box: Box) -> None:
    seed = int(os.environ.get("HOLDFAST_SEED", secrets.randbelow(2**31)))

    done = kills.trainings(box.root / "home", seed=seed, kills=KILLS, epochs=30, tell=lambda broken: None)

    problems = [problem for broken in done for problem in (*broken.problems, *broken.story) if broken.problems]
    assert problems == [], f"HOLDFAST_SEED={seed}"
    assert sum(sum(broken.kills.values()) for broken in done) >= KILLS
