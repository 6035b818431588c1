"""torch.distributed.checkpoint.async_save with its DefaultStager kept over all saves, staging in a thread."""

from __future__ import annotations

from pathlib import Path

from bench.engines import NOTHING, Engine, Loaded, newest
from bench.engines.dcp import read
from bench.engines.dcp_async import train
from bench.job import Job, Weights


class DcpAsyncStager(Engine):
    title = "DCP async_save, staging thread"
    documented = "torch/distributed/checkpoint/staging.py DefaultStager, StagingOptions; state_dict_saver.py async_save"
    preload = ("torch.distributed.checkpoint",)
    note = "waits for staging before the weights change, as AsyncSaveResponse.staging_completion asks"

    def train(self, folder: Path, job: Job) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        options = StagingOptions(
            use_pinned_memory=False, use_shared_memory=True, use_async_staging=True, use_non_blocking_copy=False
        )
        train(folder, job, {"async_stager": DefaultStager(options)})

    def load(self, folder: Path, weights: Weights) -> Loaded:
        path = newest(folder, "step-*", holding=".metadata")
        return NOTHING if path is None else read(path, weights)
