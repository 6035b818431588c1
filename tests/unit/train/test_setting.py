"""The plan that the library makes for a run without a supervisor."""

from __future__ import annotations

import json
from pathlib import Path

from holdfast.plan import Plan
from holdfast.train.setting import find


def test_the_plan_of_a_script_alone_is_one_that_the_archiver_and_the_verbs_accept(tmp_path: Path) -> None:
    setting = find(tmp_path / "alone", {})

    plan = Plan.from_json(json.loads(setting.run.plan.read_text()))

    assert (plan.alone, plan.dir, bool(plan.digest)) == (True, str(setting.run.root), True)
