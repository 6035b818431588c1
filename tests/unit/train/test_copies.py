"""The memory tier from the rank's side, against a node on the other side of the sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import holdfast
from holdfast.checkpoint.slots import Slot, State
from holdfast.heartbeat import Page, page_path
from holdfast.plan import Every, Memory
from tests.fake_node import FakeNode


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    every, memory = Every(auto=False, steps=1000), Memory(auto=False, steps=1)
    made = FakeNode(tmp_path / "digits", every=every, memory=memory)
    for name, value in made.environ().items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


def copies(node: FakeNode) -> list[tuple[State, int, int]]:
    """(state, step, tries) of each slot, by step."""
    slots = [Slot(descriptor) for descriptor in node.sets[0].slots]
    found = sorted(((slot.state, slot.get("step"), slot.get("tries")) for slot in slots), key=lambda one: one[1])
    for slot in slots:
        slot.close()
    return found


def events(node: FakeNode) -> list[dict[str, Any]]:
    lines = (node.run.records / "rank-00000.jsonl").read_text().splitlines()
    return [found for line in lines if "event" in (found := json.loads(line))]


def train(steps: int, weight: torch.nn.Linear) -> holdfast.Run:
    run = holdfast.Run(weight=weight)
    run.begin()
    for _ in range(steps):
        with torch.no_grad():
            weight.weight += 1
        run.tick()
    return run


def test_each_step_is_held_and_the_archiver_is_not_told(node: FakeNode) -> None:
    run = train(5, torch.nn.Linear(2, 1))

    assert copies(node) == [(State.HELD, 3, 0), (State.HELD, 4, 0), (State.HELD, 5, 0)]
    assert (node.kept, [event["event"] for event in events(node)]) == ([], ["restored"])
    page = Page(page_path(node.run.runtime, 0))
    assert page.get("memory_step") == 5
    page.close()
    run._session.abandon()


def test_the_next_process_continues_in_place_and_counts_itself_until_it_has_made_a_step(node: FakeNode) -> None:
    killed = torch.nn.Linear(2, 1)
    train(5, killed)._session.abandon()

    weight = torch.nn.Linear(2, 1)
    run = train(0, weight)
    began = copies(node)[-1]
    assert (run.resumed, run.step, began) == (True, 5, (State.HELD, 5, 1))
    assert torch.equal(weight.weight, killed.weight)
    run._session.abandon()
    train(1, weight)._session.abandon()

    assert copies(node) == [(State.HELD, 4, 0), (State.HELD, 5, 0), (State.HELD, 6, 0)]
    assert [event["tier"] for event in events(node)] == ["", "memory", "memory"]


def test_what_was_read_is_not_changed_by_copies_made_since(node: FakeNode) -> None:
    train(3, torch.nn.Linear(2, 1))._session.abandon()
    weight = torch.nn.Linear(2, 1)

    run = train(0, weight)
    before = weight.weight.clone()
    for _ in range(4):
        run.tick()

    assert torch.equal(weight.weight, before)
    run._session.abandon()


def test_while_the_archiver_is_away_two_slots_go_on_taking_copies(node: FakeNode) -> None:
    node.hold = True
    run = train(2, torch.nn.Linear(2, 1))
    for _ in range(2):
        run.save()
        run.tick()
    run.tick()

    assert [(state, step) for state, step, _ in copies(node)] == [(State.SEALED, 3), (State.HELD, 4), (State.HELD, 5)]
    run.tick()
    assert [(state, step) for state, step, _ in copies(node)] == [(State.SEALED, 3), (State.HELD, 5), (State.HELD, 6)]
    run._session.abandon()
    node.hold = False
