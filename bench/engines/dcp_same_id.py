"""torch.distributed.checkpoint into one folder again and again, as its `overwrite=True` default allows."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.engines import NOTHING, Engine, Loaded
from bench.engines.dcp import read, sharded
from bench.job import Job, Weights


class DcpSameId(Engine):
    title = "DCP, one folder"
    documented = "https://docs.pytorch.org/tutorials/recipes/distributed_checkpoint_recipe.html (CHECKPOINT_DIR)"
    preload = ("torch.distributed.checkpoint",)
    ranks = True
    retention = "overwrites"

    def train(self, folder: Path, job: Job) -> None:
        import torch.distributed.checkpoint as dcp

        for step in job.steps():
            dcp.save({"model": sharded(job), "step": torch.tensor(step)}, checkpoint_id=folder / "checkpoint")
            job.saved(step)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        path = folder / "checkpoint"
        return read(path, weights) if path.exists() else NOTHING
