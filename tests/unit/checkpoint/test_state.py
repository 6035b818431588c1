"""What goes into a checkpoint comes back as it was, through canonical JSON; the rest is refused with its path."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, defaultdict
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint.state import CannotStore, UnreadableState, decode, encode


def through(value: Any) -> Any:
    encoded = encode({"x": value})
    text = json.dumps(encoded.tree, sort_keys=True, allow_nan=False)
    return decode(json.loads(text), {name: tensor.clone() for name, tensor in encoded.tensors.items()})["x"]


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return math.copysign(1, a) == math.copysign(1, b) and (a == b or (a != a and b != b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(p, q) for p, q in zip(a.items(), b.items(), strict=True))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(p, q) for p, q in zip(a, b, strict=True))
    return bool(a == b)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
TREES = st.recursive(SCALARS, lambda t: st.lists(t) | st.tuples(t, t) | st.dictionaries(KEYS, t), max_leaves=12)


@given(TREES)
def test_trees_come_back_with_their_types_order_and_signs(tree: Any) -> None:
    assert same(through(tree), tree)


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        frozenset({"a"}),
        OrderedDict(b=1, a=2),
        torch.Size([2, 3]),
        torch.bfloat16,
        torch.device("cuda:1"),
        np.float32(0.1),
        np.datetime64("2020-01-01"),
        np.str_(""),
        np.bytes_(b""),
        2**200,
        -(2**53) - 1,
        {"$": "tensor"},
        {(1, "a"): {None: []}},
    ],
)
def test_known_types_come_back(value: Any) -> None:
    assert same(through(value), value)


@pytest.mark.parametrize("device", ["mps:0", "meta", "xpu:3"])
def test_a_device_that_is_not_here_becomes_the_cpu(device: str) -> None:
    tree = {"$": "tensor", "ref": "a", "device": device}

    found = decode(tree, {"a": torch.arange(3)}, place=True)

    assert (found.device.type, found.tolist()) == ("cpu", [0, 1, 2])


def test_strides_that_fill_their_memory_survive() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)

    back = through(image)

    assert back.stride() == image.stride()
    assert torch.equal(back, image)


def test_tied_tensors_are_stored_once_and_stay_tied() -> None:
    weight = torch.randn(4)
    encoded = encode({"a": weight, "b": {"c": weight.view(4)}, "d": weight[:2]})

    back = decode(encoded.tree, {name: tensor.clone() for name, tensor in encoded.tensors.items()})

    assert list(encoded.tensors) == ["a"]
    assert back["a"] is back["b"]["c"]
    back["d"].zero_()
    assert torch.equal(back["a"], torch.cat([torch.zeros(2), weight[2:]]))


def test_parameters_and_sparse_tensors() -> None:
    sparse = torch.sparse_coo_tensor([[0, 2]], [1.0, 2.0], (4,), check_invariants=True).coalesce()

    parameter, back = through([torch.nn.Parameter(torch.ones(2), requires_grad=False), sparse])

    assert isinstance(parameter, torch.nn.Parameter)
    assert not parameter.requires_grad
    assert back.is_coalesced()
    assert torch.equal(back.to_dense(), sparse.to_dense())


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="<u2").reshape(2, 3),
        np.asfortranarray(np.eye(3)),
        np.array(["ab", "c"]),
        np.zeros((0, 2)),
        np.array(3),
    ],
)
def test_arrays_come_back_with_dtype_and_order(array: Any) -> None:
    back = through(array)

    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.flags.f_contiguous == array.flags.f_contiguous
    assert (back == array).all()


def test_names_are_unique_whatever_the_keys() -> None:
    encoded = encode({"m": {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}}})

    assert decode(encoded.tree, encoded.tensors)["m"]["a"]["b"].item() == 1


def test_a_defaultdict_is_told() -> None:
    encoded = encode({"x": defaultdict(list, a=[1])})

    assert encoded.notes == ("x is a defaultdict and comes back as a dict",)


class Loud(torch.Tensor):
    """A subclass that knows things of its own."""


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"state": {3: {"fn": len}}}, r"optimizer\.state\[3\]\['fn'\] is a function or class \(len\)"),
        ([Colour.RED], r"optimizer\[0\] is the enum member Colour\.RED"),
        ({object(): 1}, "key <object"),
        (torch.Generator(), "torch.*Generator"),
        (np.array([object()]), "NumPy array of object"),
        (torch.empty(2, device="meta"), "a strided tensor of float32 on meta"),
        ({"w": torch.eye(2).to_mkldnn()}, r"optimizer\.w is a mkldnn tensor of float32"),
        (torch._efficientzerotensor((3,)), "a tensor without memory"),
        ([torch.nn.parameter.UninitializedParameter()], r"optimizer\[0\] is a torch.*UninitializedParameter"),
        ({"w": torch.ones(2).as_subclass(Loud)}, r"optimizer\.w is a .*Loud"),
    ],
)
def test_what_cannot_be_stored_is_named_with_its_path(value: Any, says: str) -> None:
    with pytest.raises(CannotStore, match=says) as caught:
        encode({"optimizer": value})

    assert caught.value.hint


def test_a_cycle_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)

    with pytest.raises(CannotStore, match="part of itself"):
        encode({"x": ring})


@pytest.mark.parametrize(
    "tree",
    [
        {"$": "pickle", "v": ""},
        {},
        {"$": "tuple"},
        {"$": "tensor", "ref": "gone"},
        {"$": "dtype", "v": "nn"},
        {"$": []},
    ],
)
def test_what_is_not_known_is_not_read(tree: Any) -> None:
    with pytest.raises(UnreadableState):
        decode(tree, {})


@pytest.mark.filterwarnings("ignore:.*prototype stage")
def test_a_nested_tensor_is_refused() -> None:
    ragged = torch.nested.as_nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.strided)

    with pytest.raises(CannotStore, match="x is a nested tensor of float32"):
        encode({"x": ragged})


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_quantised_tensor_that_was_never_quantised_is_refused() -> None:
    with pytest.raises(CannotStore, match="x is a quantised tensor without scales"):
        encode({"x": torch.empty(3, dtype=torch.qint8)})
