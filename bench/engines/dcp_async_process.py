"""torch.distributed.checkpoint.async_save with its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.engines import NOTHING, Engine, Loaded, newest
from bench.engines.dcp import read
from bench.engines.dcp_async import train
from bench.job import Job, Weights


class DcpAsyncProcess(Engine):
    title = "DCP async_save, process"
    documented = "https://docs.pytorch.org/docs/2.13/distributed.checkpoint.html (AsyncCheckpointerType.PROCESS)"
    preload = ("torch.distributed.checkpoint",)

    def train(self, folder: Path, job: Job) -> None:
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

        how: dict[str, Any] = {"async_checkpointer_type": AsyncCheckpointerType.PROCESS}
        train(folder, job, how)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        path = newest(folder, "step-*", holding=".metadata")
        return NOTHING if path is None else read(path, weights)
