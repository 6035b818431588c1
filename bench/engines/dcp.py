"""torch.distributed.checkpoint, a folder per step; the newest that has `.metadata` wins, as in torchtitan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.engines import NOTHING, Engine, Loaded, newest
from bench.job import Job, Weights


def sharded(job: Job) -> dict[str, Any]:
    """The model's state; with several ranks each tensor is a DTensor of which this rank holds a part."""
    if job.world == 1:
        return dict(job.weights.state_dict())
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (job.world,))
    return {
        name: distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)
        for name, value in job.weights.state_dict().items()
    }


class Dcp(Engine):
    title = "DCP, folder per step"
    documented = (
        "https://docs.pytorch.org/docs/2.13/distributed.checkpoint.html; "
        "newest: https://github.com/pytorch/torchtitan torchtitan/components/checkpoint.py _find_load_step"
    )
    preload = ("torch.distributed.checkpoint",)
    ranks = True

    def train(self, folder: Path, job: Job) -> None:
        import torch.distributed.checkpoint as dcp

        for step in job.steps():
            dcp.save({"model": sharded(job), "step": torch.tensor(step)}, checkpoint_id=folder / f"step-{step}")
            job.saved(step)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        path = newest(folder, "step-*", holding=".metadata")
        return NOTHING if path is None else read(path, weights)


def read(path: Path, weights: Weights) -> Loaded:
    """`dcp.load` in place."""
    import torch.distributed.checkpoint as dcp

    state = {"model": weights.state_dict(), "step": torch.tensor(0)}
    dcp.load(state, checkpoint_id=path)
    return Loaded(int(state["step"]))
