"""A checkpoint goes into what is there: whatever wraps it, without needing the memory twice, or it says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.train.objects import StateMismatch
from tests.fake_node import FakeNode


class Wrapped(nn.Module):
    """What DistributedDataParallel does to names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def save(**state: Any) -> None:
    run = holdfast.Run(**state)
    run.save()
    run.close()


def load(**state: Any) -> holdfast.Run:
    run = holdfast.Run(**state)
    run._session.abandon()
    assert run.resumed
    return run


def make(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(1001, 300), nn.BatchNorm1d(300), nn.Linear(300, 2))


def values(module: nn.Module) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in module.state_dict().values()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("before", ["bare", "ddp", "compiled", "part"])
@pytest.mark.parametrize("after", ["bare", "ddp", "compiled", "part"])
def test_wrapping_makes_no_difference(node: FakeNode, before: str, after: str) -> None:
    def wrap(model: nn.Sequential, how: str) -> Any:
        if how == "part":
            model[0] = torch.compile(model[0], backend="eager")
        return {"ddp": Wrapped, "compiled": lambda m: torch.compile(m, backend="eager")}.get(how, lambda m: m)(model)

    model = wrap(make(1), before)
    save(model=model)
    other = wrap(make(2), after)

    load(model=other)

    assert equal(values(model), values(other))


def test_a_tensor_scattered_in_the_slot_is_put_together_in_its_own_place(node: FakeNode) -> None:
    model = make(1)
    save(model=model)
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    expected = values(model)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()

    load(model=model)

    assert equal(values(model), expected)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places


def test_another_dtype_is_refused_unless_it_is_allowed(node: FakeNode) -> None:
    model = make(1)
    save(model=model)

    with pytest.raises(
        StateMismatch, match=r"of another dtype:\n    0.weight float32 .* instead of bfloat16"
    ) as caught:
        holdfast.Run(model=make(2).bfloat16())
    assert caught.value.hint is not None
    assert "allow_dtype" in caught.value.hint

    half = make(2).bfloat16()
    load(model=half, allow_dtype=["model/*"])
    assert torch.equal(half[0].weight, model[0].weight.bfloat16())


def test_a_head_of_another_shape_stays_when_both_sides_allow_it(node: FakeNode) -> None:
    model = make(1)
    save(model=model)
    other = nn.Sequential(*make(2)[:2], nn.Linear(300, 7))
    head = other[2].weight.detach().clone()

    load(model=other, allow_missing=["model/2.*"], allow_unused=["model/2.*"])

    assert torch.equal(other[2].weight, head)
    assert torch.equal(other[0].weight, model[0].weight)


class Shadow:
    """Keeps the very tensors of a model, under names of its own."""

    def __init__(self, model: nn.Module) -> None:
        self.held = list(model.state_dict().values())

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held = state["held"]


def test_an_object_that_holds_tensors_of_another_gets_them_back(node: FakeNode) -> None:
    model = make(1)
    save(model=model, shadow=Shadow(model))
    again = make(2)
    shadow = Shadow(again)

    load(model=again, shadow=shadow)

    assert equal(shadow.held, values(model))


class Remembers(nn.Module):
    """Keeps what it is given, as `set_extra_state` of many modules does, and loads a buffer in its own way."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.extra = {"seen": torch.full((5,), value), "more": [torch.full((3,), value)]}
        self.register_buffer("own", torch.full((4,), value))

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_rest: Any) -> None:
        self.own = state_dict[prefix + "own"]
        self.set_extra_state(state_dict[prefix + "_extra_state"])


class RemembersExtra(Remembers):
    """The same with torch's own loading."""

    _load_from_state_dict = nn.Module._load_from_state_dict


@pytest.mark.parametrize("kind", [Remembers, RemembersExtra])
def test_what_a_module_keeps_of_its_stored_state_outlives_the_slot(node: FakeNode, kind: type[Remembers]) -> None:
    save(model=kind(1.0))
    model = kind(2.0)
    run = holdfast.Run(model=model)
    kept = [model.extra["seen"], *model.extra["more"], model.own]
    model.extra, model.own = {"seen": torch.full((5,), 3.0), "more": [torch.full((3,), 3.0)]}, torch.full((4,), 3.0)
    for _ in range(4):  # through every slot
        run.save()
    run.close()

    assert [set(tensor.tolist()) for tensor in kept] == [{1.0}] * 3


@pytest.mark.parametrize("kind", ["meta", "lazy"])
def test_a_module_without_memory_is_refused_and_not_passed_over(node: FakeNode, kind: str) -> None:
    save(model=nn.Linear(3, 2))
    with torch.device("meta" if kind == "meta" else "cpu"):
        model = nn.Linear(3, 2) if kind == "meta" else nn.LazyLinear(2)

    with pytest.raises(StateMismatch, match=r"meta device|not initialised"):
        holdfast.Run(model=model)


class Master(torch.optim.SGD):
    """Keeps what bfloat16 cannot hold: a copy of its parameter, and sums."""

    def step(self, closure: Any = None) -> Any:
        for parameter in (one for group in self.param_groups for one in group["params"]):
            exact = torch.full(parameter.shape, 1 / 3)
            self.state[parameter] = {"master": exact, "sums": {"all": [exact.double() / 7]}, "count": 3, "step": 1.5}


def test_an_optimizers_state_keeps_its_dtypes_whatever_the_parameters_have(node: FakeNode) -> None:
    model = make(1).bfloat16()
    optimizer = Master(model.parameters())
    optimizer.step()
    save(model=model, optimizer=optimizer)
    other = make(2).bfloat16()
    again = Master(other.parameters())
    load(model=other, optimizer=again)

    before, after = ([*one.state.values()] for one in (optimizer, again))
    assert len(after) == len(before) > 0
    for stored, found in zip(before, after, strict=True):
        assert (found["count"], found["step"], found["master"].dtype) == (3, 1.5, torch.float32)
        assert torch.equal(found["master"], stored["master"])
        assert torch.equal(found["sums"]["all"][0], stored["sums"]["all"][0])
