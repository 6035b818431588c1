"""Which of the triggers make a training process save, against a node on the other side of the sockets."""

from __future__ import annotations

import json
import os
import signal
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import holdfast
from holdfast.heartbeat import Handlers, Page, page_path
from holdfast.train.pace import Pace
from tests.fake_node import FakeNode


def loader(batches: int) -> DataLoader[Any]:
    return DataLoader(torch.arange(batches, dtype=torch.float32), batch_size=1)  # type: ignore[arg-type]


def ask(node: FakeNode, *, keep: dict[str, Any] | None = None, overhead: float = 0.03, **every: Any) -> None:
    """Write these triggers into the plan, and no others."""
    plan = json.loads(node.run.plan.read_text())
    nothing = {"auto": False, "steps": None, "seconds": None, "epochs": None, "rules": []}
    plan["checkpoint"]["every"] = {**nothing, **every}
    plan["checkpoint"]["keep"].update(keep or {})
    plan["checkpoint"]["max_overhead_ratio"] = overhead
    node.run.plan.write_text(json.dumps(plan))


def saves(node: FakeNode) -> list[tuple[int, str]]:
    return [(kept.table["step"], kept.table["reason"]) for kept in node.kept]


def drop(run: holdfast.Run) -> None:
    run._session.abandon()


def train(run: holdfast.Run, node: FakeNode, losses: list[float]) -> None:
    """One step for each loss, every save durable before the next; then the process dies."""
    data = loader(len(losses))
    for _, loss in zip(run.steps(data), losses, strict=False):
        node.archive_now()
        run.log(loss=loss)
    run._session.settle()
    node.archive_now()
    drop(run)


BEST = {"best": {"metric": "loss", "mode": "min", "count": 1}}
ANY = 1e9  # an overhead that allows a save at every step


def test_a_rule_saves_when_both_its_time_and_its_steps_are_there(node: FakeNode) -> None:
    ask(node, rules=[{"seconds": 1e-6, "steps": 3}, {"seconds": 900.0, "steps": 1}])

    train(holdfast.Run(), node, [1.0] * 7)

    assert [3, 6] == [step for step, _ in saves(node)]
    assert all(reason.endswith("if 3 steps") for _, reason in saves(node))


def test_a_metric_that_improves_on_all_before_saves(node: FakeNode) -> None:
    ask(node, keep=BEST, overhead=ANY)

    train(holdfast.Run(), node, [0.5, 0.7, 0.5, 0.4])

    assert [(1, "loss improved"), (4, "loss improved")] == saves(node)
    assert [0.5, 0.4] == [kept.table["metrics"]["loss"] for kept in node.kept]


def test_a_value_whose_save_failed_is_not_the_best_so_far(node: FakeNode) -> None:
    ask(node, keep=BEST, overhead=ANY)
    node.refuse = "the disk is full"
    run = holdfast.Run()
    for _ in run.steps(loader(4)):
        node.archive_now()
        if run.step == 1:
            node.refuse = ""
        run.log(loss=0.5)
    run._session.settle()
    node.archive_now()
    drop(run)

    assert [(2, "loss improved")] == saves(node)


def test_the_best_so_far_survives_a_restart(node: FakeNode) -> None:
    ask(node, keep=BEST, overhead=ANY)
    train(holdfast.Run(), node, [0.5])

    train(holdfast.Run(), node, [0.6, 0.55, 0.4, 9.0])  # the loader goes on behind its first batch: three steps

    assert [1, 4] == [step for step, _ in saves(node)]


def test_improvements_do_not_save_more_often_than_the_overhead_allows(node: FakeNode) -> None:
    ask(node, keep=BEST, overhead=1e-9)

    train(holdfast.Run(), node, [5.0, 4.0, 3.0, 2.0, 1.0])

    assert [1] == [step for step, _ in saves(node)]


def test_sigusr1_saves_at_the_next_boundary_and_training_goes_on(node: FakeNode) -> None:
    ask(node)
    before = signal.getsignal(signal.SIGUSR1)
    data = loader(4)
    run = holdfast.Run()
    page = Page(page_path(node.run.runtime, 0))
    assert Handlers.SAVE in Handlers(page.get("handlers"))

    for _ in run.steps(data):
        if run.step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
    node.archive_now()
    drop(run)

    assert [(2, "signal")] == saves(node)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_handler_of_the_script_is_called_too(node: FakeNode, request: pytest.FixtureRequest) -> None:
    ask(node)
    seen: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, previous))
    run = holdfast.Run()

    os.kill(os.getpid(), signal.SIGUSR1)
    drop(run)

    assert [signal.SIGUSR1] == seen


def test_auto_waits_for_its_floor_and_tells_the_sum_once(node: FakeNode) -> None:
    ask(node, auto=True)
    run = holdfast.Run()
    for step, _ in enumerate(run.steps(loader(6))):
        node.archive_now()
        run.save() if step in (1, 3) else None  # the second tells nothing new: it costs the same within a few per cent
    drop(run)

    lines = [json.loads(line) for line in (node.run.records / "rank-00000.jsonl").read_text().splitlines()]
    told = [line for line in lines if line.get("event") == "interval"]
    assert {"run.save"} == {reason for _, reason in saves(node)}
    assert told
    first = told[0]
    assert first["tier"] == "disk"
    assert first["seconds"] >= max(10.0, first["best_s"], first["blocked_s"] / 0.03)
    assert (first["failures"], first["max_overhead_ratio"]) == (0, 0.03)
    assert all(abs(a["seconds"] / b["seconds"] - 1) > 0.09 for a, b in pairwise(told))


def test_what_the_supervisor_has_seen_shortens_the_interval(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_RATES", json.dumps({"process": 99, "trained_s": 3600.0}))

    run = holdfast.Run()
    seen = run._session.setting.seen
    drop(run)

    assert (seen.process, seen.trained_s) == (99, 3600.0)


def test_with_copies_in_memory_the_disk_is_for_the_machine_alone(node: FakeNode) -> None:
    run = holdfast.Run()
    session = run._session
    chosen = []
    for kept in (False, True):
        pace = Pace(session.setting, session._records, restart_s=1.0, memory=lambda kept=kept: kept)  # type: ignore[misc]
        pace.blocked(0.5)
        chosen.append(pace.interval_s)
    drop(run)

    assert chosen == [pytest.approx(290, rel=0.02), pytest.approx(2030, rel=0.02)]
