"""torch.distributed.checkpoint.async_save with its default stager and thread; a folder per step."""

from __future__ import annotations

import tempfile
from concurrent.futures import Future
from pathlib import Path

import torch

from bench.engines import NOTHING, Engine, Loaded, newest
from bench.engines.dcp import read, sharded
from bench.job import Job, Weights


class DcpAsync(Engine):
    title = "DCP async_save, thread"
    documented = "https://docs.pytorch.org/tutorials/recipes/distributed_async_checkpoint_recipe.html"
    preload = ("torch.distributed.checkpoint",)
    ranks = True

    def train(self, folder: Path, job: Job) -> None:
        import torch.distributed as dist
        import torch.distributed.checkpoint as dcp

        if not dist.is_initialized():
            store = tempfile.mkdtemp(prefix="rendezvous-")
            dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=0, world_size=1)
        under_way: Future[object] | None = None
        for step in job.steps():
            if under_way is not None:
                under_way.result()
            state = {"model": sharded(job), "step": torch.tensor(step)}
            under_way = dcp.async_save(state, checkpoint_id=folder / f"step-{step}")
            under_way.add_done_callback(lambda done, step=step: done.exception() or job.saved(step))
        if under_way is not None:
            under_way.result()

    def load(self, folder: Path, weights: Weights) -> Loaded:
        path = newest(folder, "step-*", holding=".metadata")
        return NOTHING if path is None else read(path, weights)
