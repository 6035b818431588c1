"""What a copy into a slot costs beside one memcpy of the same bytes into the same memory, all of it faulted in before.

    python -m bench.snapshot [--keep]

Medians of interleaved rounds, torch on one thread. `copy` is `copy_in` alone, on one thread too; `save` is a whole
boundary that saves: listing, encoding, layout, copy (shared among threads) and table, and whatever else `tick` does.
--keep writes bench/results/snapshot.json: on a quiet machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import holdfast
from bench import machine
from holdfast.checkpoint.slots import Result, Slot, State
from holdfast.checkpoint.snapshot import Spec, copy_in, plan
from holdfast.checkpoint.state import encode
from holdfast.plan import Every
from tests.fake_node import FakeNode

ROUNDS = 7


class Holder:
    """Tensors as a module gives them: new ones with each call, on the same memory."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach() for name, tensor in self.tensors.items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in state.items():
            self.tensors[name].copy_(tensor)


def one_big() -> dict[str, torch.Tensor]:
    """600 MB in one tensor."""
    return {"w": torch.rand(12_288, 12_288)}


def mixed() -> dict[str, torch.Tensor]:
    """600 MB as a transformer with Adam has it: 12 layers, a vocabulary, norms and biases, times three."""
    shapes = {"words": (4_000, 1000)}
    for layer in range(12):
        shapes |= {f"{layer}.qkv": (1000, 1000), f"{layer}.out": (1000, 1000), f"{layer}.up": (2000, 1000)}
        shapes |= {f"{layer}.{name}": (1000,) for name in ("norm", "shift", "bias", "scale")}
    return {f"{part}.{name}": torch.rand(shape) for part in "wmv" for name, shape in shapes.items()}


def many_small() -> dict[str, torch.Tensor]:
    """100 000 tensors of 64 numbers."""
    return {f"layer.{number}.weight": torch.rand(64) for number in range(100_000)}


def take(node: FakeNode) -> None:
    """What an archiver does that has written the slot, without the writing: the next save finds the same slot free."""
    for descriptor in node.sets[0].slots:
        slot = Slot(descriptor)
        if slot.state is State.SEALED:
            slot.set(result=Result.COMMITTED, result_sequence=slot.get("sequence"), state=State.FREE)
        slot.close()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """Medians in ms, and the ratios to memcpy."""
    held = Holder(tensors)
    found = encode({"x": held.state_dict()}).tensors
    layout = plan([Spec(name, "other", t.dtype, t.shape) for name, t in found.items()])
    slot = Slot(os.memfd_create("bench"))
    slot.reserve(layout.end)
    copy_in(slot, layout, found, zero_gaps=True)
    size = sum(tensor.nbytes for tensor in tensors.values())
    source = torch.rand(size // 4)
    base = ctypes.addressof(ctypes.c_char.from_buffer(slot.view))
    times: dict[str, list[float]] = {"memcpy": [], "copy": [], "list": [], "save": []}
    with tempfile.TemporaryDirectory() as folder:
        node = FakeNode(Path(folder) / "bench", every=Every(auto=False), hold=True)
        os.environ.update(node.environ())
        run = holdfast.Run(x=held)
        run.begin()

        def save() -> None:
            run.save()
            run.tick()

        save()
        take(node)
        for _ in range(ROUNDS):
            times["memcpy"].append(seconds(lambda: ctypes.memmove(base + 4096, source.data_ptr(), size)))
            times["copy"].append(seconds(lambda: copy_in(slot, layout, found, zero_gaps=False)))
            times["list"].append(seconds(held.state_dict))
            times["save"].append(seconds(save))
            take(node)
        run.close()
        node.close()
    slot.close()
    os.close(slot.descriptor)
    ms = {name: statistics.median(values) * 1000 for name, values in times.items()}
    return {
        "megabytes": size / 1e6,
        **{f"{name}_ms": round(value, 2) for name, value in ms.items()},
        "copy_to_memcpy": round(ms["copy"] / ms["memcpy"], 3),
        "save_to_memcpy": round(ms["save"] / ms["memcpy"], 3),
        "us_per_tensor": round((ms["save"] - ms["memcpy"]) * 1000 / len(tensors), 2),
    }


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {make.__name__: measure(make()) for make in (one_big, mixed, many_small)}
    print(json.dumps(result, indent=1))
    if "--keep" in arguments:
        print(machine.keep("snapshot", result))


if __name__ == "__main__":
    main(sys.argv[1:])
