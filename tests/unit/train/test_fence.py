"""Copies that go on while training does: no writer gets ahead of them, and a slot is sealed only behind them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import holdfast
from holdfast.checkpoint.slots import State
from holdfast.heartbeat import Page, page_path
from holdfast.plan import Every, Memory
from holdfast.train import session
from holdfast.train.check import SnapshotChanged
from holdfast.train.fence import owned_storages
from tests.fake_device import FakeDevice
from tests.fake_node import FakeNode
from tests.unit.train.scripts import LOADERS, LOOPS, Killed, Trial, die


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    made = FakeDevice()
    monkeypatch.setattr(session, "engine_here", lambda: made)
    return made


class Script:
    """A model, its optimizer and a run over them; `step` is one of training."""

    def __init__(self, optimizer: Callable[[Any], torch.optim.Optimizer] | None = None, **more: Any) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=0.1))
        self.optimizer = make(self.model.parameters())
        self.data = DataLoader(torch.randn(6, 3).split(2), batch_size=None)  # type: ignore[arg-type]
        self.run = holdfast.Run(model=self.model, optimizer=self.optimizer, data=self.data, **more)

    def step(self, x: torch.Tensor) -> None:
        self.backward(x)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def backward(self, x: torch.Tensor) -> None:
        self.model(x).square().mean().backward()

    def values(self) -> dict[str, torch.Tensor]:
        return {f"model/{name}": tensor.clone() for name, tensor in self.model.state_dict().items()}


def slots(script: Script) -> list[State]:
    return [slot.state for slot in script.run._session._link.slots]


def stored(node: FakeNode, number: int, name: str) -> torch.Tensor:
    kept = node.kept[number]
    for chunk in kept.table["chunks"]:
        for entry in chunk["tensors"]:
            if entry["name"] == name:
                raw = bytearray(kept.raw[chunk["offset"] + entry["offset"] :][: entry["bytes"]])
                return torch.frombuffer(raw, dtype=torch.float32).view(entry["shape"])
    raise KeyError(name)


def first_steps(script: Script) -> Iterator[torch.Tensor]:
    """The second batch on: a save of the first step is in flight when it is handed out."""
    batches = iter(script.run.steps(script.data))
    script.step(next(batches))
    yield from batches


def test_parameters_and_moments_wait_and_the_rest_is_fenced_at_once(node: FakeNode, device: FakeDevice) -> None:
    script = Script()
    next(first_steps(script))

    at_once, late = device.names
    assert at_once == {"model/1.running_mean", "model/1.running_var"}
    assert {"model/0.weight", "optimizer/state/0/exp_avg", "optimizer/state/0/exp_avg_sq"} <= late
    assert device.log == ["copy", "hold", "done", "copy"]
    script.run._session.abandon()


def test_a_slot_is_sealed_only_when_its_copies_are_done(node: FakeNode, device: FakeDevice) -> None:
    script = Script()
    batches = first_steps(script)
    x = next(batches)
    before = script.values()
    assert slots(script).count(State.WRITING) == 1

    script.step(x)
    assert device.queue == []  # the step waited for them
    assert slots(script).count(State.WRITING) == 1
    next(batches)
    node.archive_now()

    assert node.kept[0].table["step"] == 1
    assert torch.equal(stored(node, 0, "model/0.weight"), before["model/0.weight"])
    assert not torch.equal(script.model[0].weight, before["model/0.weight"])
    script.run._session.abandon()


@pytest.mark.parametrize("every", [1, 1000])  # a save to disk, and a copy in memory
def test_a_late_copy_is_told_as_kept_in_memory_when_it_is_whole_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: FakeDevice, every: int
) -> None:
    memory = Memory(auto=False, steps=1)
    with contextlib.closing(FakeNode(tmp_path / "digits", every=Every(auto=False, steps=every), memory=memory)) as node:
        for name, value in node.environ().items():
            monkeypatch.setenv(name, value)
        script, page = Script(), Page(page_path(node.run.runtime, 0))
        batches = first_steps(script)
        script.step(next(batches))
        assert slots(script).count(State.WRITING) == 1  # of step 1, whose copies are done now
        assert page.get("memory_step") == 0

        next(batches)
        assert page.get("memory_step") == 1
        script.run._session.abandon()
        assert page.get("memory_step") == 2
        page.close()


def test_killed_with_copies_in_flight_nothing_is_sealed(node: FakeNode, device: FakeDevice) -> None:
    script = Script()
    batches = first_steps(script)
    x = next(batches)
    script.step(x)
    next(batches)
    node.archive_now()
    (torn,) = [slot for slot in script.run._session._link.slots if slot.state is State.WRITING]  # of step 2
    die(script.run)

    again = Script()

    assert again.run.step == 1
    assert torn.state is State.FREE
    again.run._session.abandon()


def test_leaving_by_an_exception_keeps_what_was_copied(node: FakeNode, device: FakeDevice) -> None:
    script = Script()
    next(first_steps(script))

    script.run._session.abandon()
    node.archive_now()

    assert [kept.table["step"] for kept in node.kept] == [1]
    assert device.pinned == {}


def test_a_device_that_fails_costs_what_is_in_flight_and_nothing_else(node: FakeNode, device: FakeDevice) -> None:
    script = Script()
    next(first_steps(script))
    device.broken = True

    script.run._session.abandon()
    node.archive_now()

    assert node.kept == []


def test_memory_of_freed_tensors_is_kept_until_it_is_copied(node: FakeNode, device: FakeDevice) -> None:
    script = Script()
    next(first_steps(script))
    before = script.values()
    for module in script.model:
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.zeros_like(parameter)))
    script.optimizer.param_groups.clear()
    script.optimizer.state.clear()
    gc.collect()
    waste = [torch.full((4, 3), 9.0) for _ in range(200)]  # what the freed memory would be used for

    device.carry_out()
    script.run._session.abandon()
    node.archive_now()

    assert waste
    assert torch.equal(stored(node, 0, "model/0.weight"), before["model/0.weight"])


def test_the_end_of_the_backward_pass_is_a_fence_too(node: FakeNode, device: FakeDevice) -> None:
    """GradScaler leaves a step out, and the script clips weights all the same."""
    script = Script()
    batches = first_steps(script)
    x = next(batches)
    before = script.values()

    script.backward(x)
    assert device.queue == []
    for parameter in script.model.parameters():
        parameter.data.clamp_(-0.01, 0.01)
    list(batches)
    node.archive_now()

    assert torch.equal(stored(node, 0, "model/0.weight"), before["model/0.weight"])
    script.run._session.abandon()


def test_code_behind_the_loop_may_write_anything(node: FakeNode, device: FakeDevice) -> None:
    """Weights of an average are swapped in for validation."""
    script = Script()
    for _ in script.run.epochs(1):
        for x in script.run.steps(script.data):
            node.archive_now()
            script.step(x)
        before = script.values()
        assert device.queue == []
        for parameter in script.model.parameters():
            parameter.data.zero_()
    node.archive_now()

    assert torch.equal(stored(node, 2, "model/0.weight"), before["model/0.weight"])
    assert node.kept[2].table["step"] == 3
    script.run._session.abandon()


def test_a_write_that_torch_counts_spoils_the_copy_and_ends_lazy_copies(node: FakeNode, device: FakeDevice) -> None:
    script = Script()
    batches = first_steps(script)
    x = next(batches)
    with torch.no_grad():
        script.model[0].weight.mul_(2)
    script.step(x)
    next(batches)
    node.archive_now()

    assert [kept.table["step"] for kept in node.kept] == [2]
    assert len(device.names) == 3  # the second save waits for everything at once
    assert device.queue == []
    script.run._session.abandon()


def test_the_debug_mode_names_a_write_that_torch_does_not_count(node: FakeNode, device: FakeDevice) -> None:
    script = Script(check_snapshot=True)
    batches = first_steps(script)
    x = next(batches)
    script.model[2].weight.data.mul_(2)
    script.step(x)

    with pytest.raises(SnapshotChanged, match=r"'model/2.weight' changed while the snapshot of step 1 was copied"):
        next(batches)

    script.run._session.abandon()
    node.archive_now()
    assert node.kept == []


@pytest.mark.parametrize("fake", [True, False])
def test_the_debug_mode_is_silent_when_nothing_is_wrong(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, fake: bool
) -> None:
    if fake:
        monkeypatch.setattr(session, "engine_here", FakeDevice)
    monkeypatch.setenv("HOLDFAST_CHECK_SNAPSHOT", "1")
    script = Script()

    for x in script.run.steps(script.data):
        node.archive_now()
        script.step(x)
    script.run.close()

    assert node.kept[-1].table["step"] == 3


def test_a_captured_step_ends_lazy_copies_and_spoils_those_in_flight(node: FakeNode, device: FakeDevice) -> None:
    script = Script()
    batches = first_steps(script)
    x = next(batches)
    script.run._session._saver.fence._backward.remove()  # what is captured runs no Python later
    script.backward(x)
    device.capturing = True
    script.optimizer.step()
    device.capturing = False
    next(batches)
    node.archive_now()

    assert [kept.table["step"] for kept in node.kept] == [2]
    assert device.queue == []
    script.run._session.abandon()


class Wrapper(torch.optim.Optimizer):
    """Steps another optimizer, as mixed-precision wrappers do, and runs no hooks of its own."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()


def test_what_an_optimizer_owns_is_decided_by_its_hooks() -> None:
    one, other, shared = (nn.Parameter(torch.randn(2)) for _ in range(3))
    plain = torch.optim.SGD([one, shared], momentum=0.9)
    (one.sum() + shared.sum()).backward()
    plain.step()
    second = torch.optim.SGD([shared])
    graphs = torch.optim.Adam([other], capturable=True)
    storage = [tensor.untyped_storage().data_ptr() for tensor in (one, plain.state[one]["momentum_buffer"])]

    assert owned_storages({"a": plain, "b": graphs, "model": nn.Linear(1, 1)}) >= set(storage)
    assert owned_storages({"a": plain, "b": second}).isdisjoint({shared.untyped_storage().data_ptr()})
    assert owned_storages({"b": graphs}) == frozenset()
    assert owned_storages({"w": Wrapper(torch.optim.SGD([one]))}) == frozenset()


def test_slots_are_locked_once_and_unlocked_before_they_move(node: FakeNode, device: FakeDevice) -> None:
    script = Script(notes="")
    for x in script.run.steps(script.data, epochs=4):
        node.archive_now()
        script.run.state["notes"] += "x" * 400_000  # the table grows past what was reserved
        script.step(x)
    script.run.close()

    assert len(node.kept) > 10
    assert device.pinned == {}


def test_nothing_of_ours_stays_with_torch(node: FakeNode, device: FakeDevice) -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    before = len(hooks)
    script = Script()
    assert len(hooks) == before + 1
    next(first_steps(script))
    script.run._session.abandon()

    assert len(hooks) == before
    assert not script.model[0].weight._backward_hooks


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("loop", LOOPS)
def test_killed_with_copies_in_flight_at_every_step_equals_never_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    monkeypatch.setattr(session, "engine_here", FakeDevice)

    def attempt(node: FakeNode, kill_at: int | None, *, again: bool = False) -> str | None:
        monkeypatch.setenv("HOLDFAST_RUN_DIR", str(node.root))
        trial = Trial(node, kill_at, LOADERS["plain"], disturbed=again)
        try:
            return LOOPS[loop](trial)
        except Killed:
            die(trial.run)
            return None

    calm = FakeNode(tmp_path / "calm", every=Every(auto=False), keep_last=1)
    expected = attempt(calm, None)
    calm.close()
    found = {}

    for kill_at in (1, 2, 5):
        node = FakeNode(tmp_path / f"killed-{kill_at}", every=Every(auto=False, steps=1), keep_last=1)
        attempt(node, kill_at)
        found[kill_at] = attempt(node, None, again=bool(node.kept))
        node.close()

    assert found == dict.fromkeys(found, expected)
