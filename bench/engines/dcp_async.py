"""torch.distributed.checkpoint.async_save with its default stager and thread; a folder per step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        train(folder, job, {})

    def load(self, folder: Path, weights: Weights) -> Loaded:
        path = newest(folder, "step-*", holding=".metadata")
        return NOTHING if path is None else read(path, weights)


def train(folder: Path, job: Job, how: dict[str, Any]) -> None:
    """One save under way at a time, as the recipe has it; `how`: further arguments of async_save."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    if not dist.is_initialized():
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
        dist.init_process_group("gloo")
    if job.world > 1:  # collectives of the saving thread must not meet those of training
        how = {**how, "process_group": dist.new_group(backend="gloo")}
    staged: list[Future[object]] = []
    under_way: Future[object] | None = None

    @contextmanager
    def guard() -> Iterator[None]:
        while staged:
            staged.pop().result()
        yield

    job.guard = guard
    for step in job.steps():
        if under_way is not None:
            under_way.result()
        state = {"model": sharded(job), "step": torch.tensor(step)}
        made = dcp.async_save(state, checkpoint_id=folder / f"step-{step}", **how)
        if hasattr(made, "staging_completion"):
            staged.append(made.staging_completion)
            made = made.upload_completion
        under_way = made
        made.add_done_callback(lambda done, step=step: done.exception() or job.saved(step))
    if under_way is not None:
        under_way.result()
