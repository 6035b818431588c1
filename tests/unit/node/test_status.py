"""Where the mirror stands, as `status` tells it from files alone."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.commands.status import mirror, saved
from holdfast.events import AttemptEnded, CheckpointCommitted
from holdfast.heartbeat import Page
from holdfast.node.status import compose
from holdfast.plan import CheckpointPlan, MirrorPlan, Plan
from holdfast.runs import RunDir
from holdfast.state import RunState, State
from tests.mirrors import Machine

NOW = 1_764_000_000.0


@pytest.fixture
def infos(tmp_path: Path) -> list[CheckpointInfo]:
    """Three checkpoints, committed 300, 200 and 100 s ago."""
    machine, made = Machine(tmp_path / "checkpoints"), []
    for sequence in (1, 2, 3):
        made.append(machine.save(seed=sequence, sequence=sequence, step=10 * sequence))
        os.utime(made[-1].path, (NOW, NOW - 400 + 100 * sequence))
    return made


@pytest.mark.parametrize(
    ("held", "unsent", "said"),
    [
        ([], 3, "/nas/x, nothing yet, 3 checkpoints behind, the oldest 5 min ago"),
        ([[1, 1]], 2, "/nas/x, 2 checkpoints behind, the oldest 3 min 20 s ago, cannot be reached"),
        ([[1, 1], [1, 3]], 0, "/nas/x, up to date"),
    ],
)
def test_how_many_the_mirror_lacks_and_for_how_long(
    tmp_path: Path, infos: list[CheckpointInfo], held: list[list[int]], unsent: int, said: str
) -> None:
    run = RunDir(tmp_path / "digits")
    run.root.mkdir()
    away_s = NOW if "reached" in said else None
    run.mirror.write_text(json.dumps({"url": "/nas/x", "held": held, "unreachable_since_s": away_s}))
    checkpoint = CheckpointPlan(dir=str(tmp_path / "checkpoints"), mirror=MirrorPlan(url="/nas/x"))
    plan = Plan(run="digits", name="digits", dir=str(run.root), argv=("true",), cwd="/", checkpoint=checkpoint)
    last = {"step": 30, "term": 1, "sequence": 3, "size_bytes": 0, "reason": "", "seconds": 0.0, "manifest": ""}

    told = compose(run, plan, State(committed=CheckpointCommitted(t=NOW, **last)), [], now_s=NOW, live=True)  # type: ignore[arg-type]

    assert (unsent, unsent > 0) == (told["mirror"]["unsent"], told["mirror"]["behind"])
    assert said == mirror(told)


def test_an_attempt_that_had_nothing_left_to_do_keeps_the_step_it_continued_from(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "digits")
    run.records.mkdir(parents=True)
    checkpoint = CheckpointPlan(dir=str(tmp_path / "checkpoints"))
    plan = Plan(run="digits", name="digits", dir=str(run.root), argv=("true",), cwd="/", checkpoint=checkpoint)
    ended = AttemptEnded(t=NOW, attempt=1, exit_class="succeeded", status=0, step=92, committed_step=0, epoch=4)

    told = compose(run, plan, State(history=(ended,)), [], now_s=NOW, live=False)

    assert (told["step"], told["epoch"]) == (92, 4)


@pytest.mark.parametrize(("live", "left_s"), [(True, 41.0), (False, None)])
def test_a_run_that_nothing_carries_has_no_time_left(tmp_path: Path, live: bool, left_s: float | None) -> None:
    run = RunDir(tmp_path / "digits")
    run.records.mkdir(parents=True)
    checkpoint = CheckpointPlan(dir=str(tmp_path / "checkpoints"))
    plan = Plan(run="digits", name="digits", dir=str(run.root), argv=("true",), cwd="/", checkpoint=checkpoint)
    with contextlib.closing(Page(tmp_path / "page")) as page:
        page.begin(pid=1, start_ticks=1, rank=0, world=1, attempt=1)
        page.set(step=9, steps_total=50)
        beat = page.read()
    assert beat is not None

    told = compose(run, plan, State(phase=RunState.RUNNING, attempt=1), [beat], now_s=NOW, live=live, step_s=1.0)

    assert (told["eta_s"], told["speed_steps_per_s"]) == (left_s, left_s and 1.0)


@pytest.mark.parametrize(
    ("restored", "said"),
    [
        (None, "nothing yet"),
        ({"attempt": 1, "step": 92, "tier": "disk"}, "step 92, from the mirror"),
        ({"attempt": 2, "step": 7, "tier": "memory"}, "nothing yet"),
    ],
)
def test_a_run_that_was_resumed_from_a_mirror_has_something_saved(
    restored: dict[str, object] | None, said: str
) -> None:
    assert saved({"checkpoint": None, "memory": None, "restored": restored}) == said
