"""`holdfast.load` and `holdfast.load_weights` on checkpoints of real modules and optimizers."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdfast
from holdfast.checkpoint import pack
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.state import UnreadableState
from holdfast.errors import HoldfastError, RunNotFound, UsageError
from holdfast.train.weights import WeightsMismatch
from tests.tensorparts import part_of, save, save_parts


class Net(nn.Module):
    """A bit of everything: a large matrix, a buffer, tied weights."""

    def __init__(self, width: int = 600) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 200, bias=False)
        self.head.weight = self.embed.weight


def trained(seed: int) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    net.head(net.norm(net.embed(torch.arange(8)))).square().sum().backward()
    optimizer.step()
    return net, optimizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Net, torch.optim.Optimizer]:
    root = tmp_path_factory.mktemp("weights") / "checkpoints"
    net, optimizer = trained(0)
    run = {"version": 1, "state": {"note": "kept"}}
    save(root, {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "@run": run}, step=10)
    return root, net, optimizer


def compiled(net: nn.Module) -> Any:
    return torch.compile(net, backend="eager")


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_load_gives_what_was_registered_and_nothing_of_ours(saved: tuple[Path, Net, torch.optim.Optimizer]) -> None:
    root, net, optimizer = saved

    found = holdfast.load(root)

    assert list(found) == ["model", "optimizer"]
    assert found["model"]["embed.weight"] is found["model"]["head.weight"]
    other, again = Net(), torch.optim.AdamW(Net().parameters())
    other.load_state_dict(found["model"])
    again.load_state_dict(found["optimizer"])
    assert same(net, other)
    assert torch.equal(again.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_load_reads_only_the_names_asked_for(saved: tuple[Path, Net, torch.optim.Optimizer]) -> None:
    assert list(holdfast.load(f"{saved[0]}@10", names=["model"])) == ["model"]
    with pytest.raises(UsageError, match="holds no 'ema'"):
        holdfast.load(saved[0], names=["ema"])


def test_load_puts_tensors_where_asked(saved: tuple[Path, Net, torch.optim.Optimizer]) -> None:
    assert holdfast.load(saved[0], map_location="meta", names=["model"])["model"]["embed.weight"].is_meta


def test_what_is_not_there_is_told(saved: tuple[Path, Net, torch.optim.Optimizer], tmp_path: Path) -> None:
    with pytest.raises(RunNotFound):
        holdfast.load("no-such-run")
    with pytest.raises(UsageError, match="neither a run nor a checkpoint folder"):
        holdfast.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has no checkpoint at step 11"):
        holdfast.load(f"{saved[0]}@11")


@pytest.mark.parametrize(
    "wrap", [nn.Module.eval, nn.DataParallel, compiled, lambda net: nn.DataParallel(compiled(net))]
)
def test_weights_go_into_the_module_however_it_is_wrapped(wrap, saved) -> None:  # type: ignore[no-untyped-def]
    root, net, _ = saved
    torch.manual_seed(1)
    other = Net()
    memory = other.embed.weight.data_ptr()

    loaded = holdfast.load_weights(wrap(other), root)

    assert loaded == (10, (), ())
    assert same(net, other)
    assert other.embed.weight.data_ptr() == memory
    assert other.head.weight is other.embed.weight


def test_weights_of_a_wrapped_module_go_into_a_plain_one(tmp_path: Path) -> None:
    net, other = trained(0)[0], trained(1)[0]
    save(tmp_path, {"model": nn.DataParallel(compiled(net)).state_dict()})

    holdfast.load_weights(other, tmp_path)

    assert same(net, other)


def test_a_module_in_another_memory_format_is_filled_too(tmp_path: Path) -> None:
    conv, other = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save(tmp_path, {"model": conv.state_dict()})

    holdfast.load_weights(other, tmp_path)

    assert same(conv, other)
    assert other.weight.is_contiguous(memory_format=torch.channels_last)


def test_every_difference_is_named_and_nothing_is_loaded(saved: tuple[Path, Net, torch.optim.Optimizer]) -> None:
    other = Net(width=500)
    other.extra = nn.Linear(1, 1)
    other.norm.double()
    before = {key: value.clone() for key, value in other.state_dict().items()}

    with pytest.raises(WeightsMismatch) as told:
        holdfast.load_weights(other, saved[0])

    said = str(told.value).splitlines()
    assert said[0].endswith(" does not fit model: 2 not in the checkpoint, 6 of another shape")
    assert said[1:4] == ["  not in the checkpoint:", "    extra.weight float32 (1, 1)", "    extra.bias float32 (1,)"]
    assert "    embed.weight float32 (200, 600) instead of float32 (200, 500)" in said
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tracebacks have no notes")
def test_a_traceback_ends_with_the_hint(saved: tuple[Path, Net, torch.optim.Optimizer]) -> None:
    with pytest.raises(WeightsMismatch) as told:
        holdfast.load_weights(Net(width=500), saved[0])

    assert "".join(traceback.format_exception(told.value)).endswith(f"\nhint: {told.value.hint}\n")


def test_another_type_is_a_difference(saved: tuple[Path, Net, torch.optim.Optimizer]) -> None:
    with pytest.raises(
        WeightsMismatch, match=r"of another dtype:\n    embed.weight float32 \(200, 600\) instead of bfloat16"
    ):
        holdfast.load_weights(Net().bfloat16(), saved[0])

    other = Net().bfloat16()
    holdfast.load_weights(other, saved[0], allow_dtype=["model/*"])
    assert torch.equal(other.embed.weight, saved[1].embed.weight.bfloat16())


def test_what_is_allowed_is_left_as_it_is_and_returned(saved: tuple[Path, Net, torch.optim.Optimizer]) -> None:
    other = Net()
    other.extra, other.norm = nn.Linear(1, 1), nn.Identity()

    loaded = holdfast.load_weights(other, saved[0], allow_missing=["model/extra.*"], allow_unused=["model/norm.*"])

    assert loaded.missing == ("extra.weight", "extra.bias")
    assert len(loaded.unused) == 5
    assert torch.equal(other.embed.weight, saved[1].embed.weight)


def test_an_optimizer_is_no_module(saved: tuple[Path, Net, torch.optim.Optimizer]) -> None:
    with pytest.raises(WeightsMismatch):
        holdfast.load_weights(Net(), saved[0], name="optimizer")


def test_what_is_no_tensor_comes_back_as_well(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        note: object = None

        def get_extra_state(self) -> object:
            return {"seen": (1, 2)}

        def set_extra_state(self, state: object) -> None:
            self.note = state

    other = Extra(2, 2)
    save(tmp_path, {"model": Extra(2, 2).state_dict()})

    holdfast.load_weights(other, tmp_path)

    assert other.note == {"seen": (1, 2)}


def test_damage_is_named(tmp_path: Path) -> None:
    info = save(tmp_path, {"model": Net().state_dict()})
    path = pack.path(tmp_path, info.packs[0].name)
    raw = bytearray(path.read_bytes())
    raw[5000] ^= 1
    path.write_bytes(raw)

    with pytest.raises(Damaged, match="damaged chunk"):
        holdfast.load(tmp_path)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({"$": "dict", "items": [["model", {"$": "tensor", "ref": "gone"}]]}, UnreadableState),
        (
            {"$": "dict", "items": [["model", {"$": "sparse", "indices": 1, "values": 2, "shape": [9]}]]},
            UnreadableState,
        ),
        ({"$": "dict", "items": [["model", {"$": "os.system", "v": "id"}]]}, UnreadableState),
        ({"$": "dict", "items": ["model"]}, UnreadableState),
        ({"$": "dict", "items": [["model", {"$": "device", "v": "toaster"}]]}, UnreadableState),
        ({"n": 1}, UnreadableState),
    ],
)
def test_a_tree_that_makes_no_sense_is_refused(tmp_path: Path, state: object, error: type[HoldfastError]) -> None:
    part = part_of({"t0": torch.zeros(3)})
    part.table["state"] = state
    save_parts(tmp_path, [part])

    with pytest.raises(error):
        holdfast.load(tmp_path)


def test_a_tree_nested_deeper_than_python_calls_is_refused(tmp_path: Path) -> None:
    node: object = 1
    for _ in range(700):
        node = [node]
    part = part_of({})
    part.table["state"] = {"$": "dict", "items": [["model", node]]}
    save_parts(tmp_path, [part])

    with pytest.raises(UnreadableState, match="cannot be rebuilt"):
        holdfast.load(tmp_path)


@pytest.mark.parametrize("name", ["blake3", "zstandard"])
def test_an_interpreter_that_cannot_verify_says_what_it_lacks(tmp_path: Path, name: str) -> None:
    code = (
        f"import sys; sys.modules[{name!r}] = None\n"
        "import holdfast, torch\n"
        "from holdfast.errors import HoldfastError\n"
        "for call in (holdfast.load, lambda t: holdfast.load_weights(torch.nn.Linear(1, 1), t)):\n"
        "    try: call('x')\n"
        "    except HoldfastError as error: print(error, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    sentence = f"reading a checkpoint here needs {name}, which this Python lacks pip install {name}"
    assert done.stdout.splitlines() == [sentence, sentence]


class Copying(nn.Linear):
    """Shows copies of its weights, as a wrapper does that gathers or converts them."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().state_dict(*args, **kwargs)
        return type(found)((key, value.clone()) for key, value in found.items())


class Renaming(nn.Linear):
    """Shows names that it does not load."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"x.{key}": value.clone() for key, value in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False)


def test_weights_reach_a_module_that_shows_copies_of_its_own(tmp_path: Path) -> None:
    source, module = nn.Linear(3, 2), Copying(3, 2)
    save(tmp_path, {"model": source.state_dict()})

    holdfast.load_weights(module, tmp_path)

    assert torch.equal(module.weight, source.weight)


def test_a_module_that_does_not_load_what_it_shows_is_told(tmp_path: Path) -> None:
    save(tmp_path, {"model": Renaming(3, 2).state_dict()})

    with pytest.raises(WeightsMismatch, match=r"shows 'x\.\w+' in its state_dict and does not load it"):
        holdfast.load_weights(Renaming(3, 2), tmp_path)


@pytest.mark.parametrize("kind", ["meta", "lazy"])
def test_a_module_without_memory_is_refused(tmp_path: Path, kind: str) -> None:
    save(tmp_path, {"model": nn.Linear(3, 2).state_dict()})
    with torch.device("meta" if kind == "meta" else "cpu"):
        module = nn.Linear(3, 2) if kind == "meta" else nn.LazyLinear(2)

    with pytest.raises(WeightsMismatch, match=r"meta device|not initialised"):
        holdfast.load_weights(module, tmp_path)
