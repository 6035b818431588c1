"""Ranks that save or load an FSDP2 model and its optimizer through every adapter. RANKS save|load|preempted FOLDER.

torch is imported once; the ranks are forked from here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from holdfast.integrations.dcp import HoldfastLoadPlanner, HoldfastReader, HoldfastWriter


def build(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = torch.nn.Sequential(torch.nn.Linear(256, 1001), torch.nn.ReLU(), torch.nn.Linear(1001, 7))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "step": 7}


def whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: whole(one) for key, one in value.items()}
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def save(root: Path) -> None:
    model, optimizer = build(1)
    for _ in range(2):
        model(torch.ones(3, 256)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    dcp.save(state(model, optimizer), checkpoint_id=f"holdfast://{root}/files/step-7")
    dcp.save(state(model, optimizer), storage_writer=HoldfastWriter(root / "tensors", "step-7"))
    dcp.async_save(
        state(model, optimizer),
        storage_writer=HoldfastWriter(root / "tensors", "from-a-process"),
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
    ).result()
    expected = whole(state(model, optimizer))
    if dist.get_rank() == 0:
        torch.save(expected, root / "expected.pt")


def load(root: Path) -> None:
    expected = torch.load(root / "expected.pt")
    for name in ("files", "tensors"):
        model, optimizer = build(2)
        found = state(model, optimizer)
        if name == "files":
            dcp.load(found, checkpoint_id=f"holdfast://{root}/files/step-7")
        else:
            reader = HoldfastReader(root / "tensors", "step-7")
            dcp.load(found, storage_reader=reader, planner=HoldfastLoadPlanner())
        set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
        same(whole(state(model, optimizer)), expected)
    (root / f"loaded-{dist.get_rank()}").touch()


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def preempted(root: Path) -> None:
    """Two saves of one name; during the second rank 1 is killed once rank 0 has written its part."""
    rows = torch.distributed.tensor.Shard(0)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def sharded(value: float) -> dict[str, Any]:
        return {"w": torch.distributed.tensor.DTensor.from_local(torch.full((50, 1000), value), mesh, [rows])}

    class Killed(dcp.DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            if dist.get_rank() == 1:
                while not list((root / "staging").glob("*/*/part.json")):
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            return super().resolve_data(write_item)

    dcp.save(sharded(1), checkpoint_id=f"holdfast://{root}/last")
    dcp.save(sharded(2), checkpoint_id=f"holdfast://{root}/last", planner=Killed())


def rank(number: int, ranks: int, what: str, root: Path, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=ranks)
    {"save": save, "load": load, "preempted": preempted}[what](root)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ranks, what, root = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        given = (ranks, what, root, f"{folder}/store")
        started = [fork.Process(target=rank, args=(number, *given)) for number in range(ranks)]
        for one in started:
            one.start()
        for one in started:
            one.join()
    sys.exit(any(one.exitcode for one in started))


if __name__ == "__main__":
    main()
