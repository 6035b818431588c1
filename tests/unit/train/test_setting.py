"""Where a training process finds itself, and the plan that it makes without a supervisor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from holdfast.plan import Plan
from holdfast.train.setting import find


def test_the_plan_of_a_script_alone_is_one_that_the_archiver_and_the_verbs_accept(tmp_path: Path) -> None:
    setting = find(tmp_path / "alone", {})

    plan = Plan.from_json(json.loads(setting.run.plan.read_text()))

    assert (plan.alone, plan.dir, bool(plan.digest)) == (True, str(setting.run.root), True)


@pytest.mark.parametrize("ranks", [1, 2, 64])
def test_ranks_share_the_processors_of_their_machine(tmp_path: Path, ranks: int) -> None:
    setting = find(tmp_path / "run", {"WORLD_SIZE": "64", "LOCAL_WORLD_SIZE": str(ranks)})

    assert setting.threads == len(os.sched_getaffinity(0)) // ranks
