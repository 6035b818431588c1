"""Meta's torch_checkpointing: staged, written by a process of its own, committed by a rename."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from bench.engines import NOTHING, Engine, Loaded, newest
from bench.engines.dcp import sharded
from bench.job import Job, Weights


def config() -> Any:
    """Its defaults, but for O_DIRECT."""
    from torch_checkpointing import CheckpointManager, ItemSpec
    from torch_checkpointing.default_resharder import DefaultResharder
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    return CheckpointManager.Config(
        items={"model": ItemSpec(resharder=DefaultResharder())},
        storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
    )


class TorchCheckpointing(Engine):
    title = "torch_checkpointing"
    documented = "torch_checkpointing/checkpoint_manager.py:8 (module docstring), lock(): :294"
    packages = ("torch", "torch_checkpointing")
    preload = ("torch_checkpointing",)
    ranks = True
    note = "use_direct_io=False: with its default every save on ext4 ends in EINVAL at close"

    def train(self, folder: Path, job: Job) -> None:
        from torch_checkpointing import CheckpointManager

        manager = CheckpointManager(config())
        under_way: Future[Any] | None = None
        job.guard = manager.lock
        for step in job.steps():
            if under_way is not None:
                under_way.result()
            under_way = manager.save(str(folder / f"step-{step}"), {"model": sharded(job), "step": step})
            assert under_way is not None
            under_way.add_done_callback(lambda done, step=step: done.exception() or job.saved(step))
        manager.close()

    def load(self, folder: Path, weights: Weights) -> Loaded:
        from torch_checkpointing import CheckpointManager

        path = newest(folder, "step-[0-9]*")
        if path is None:
            return NOTHING
        manager = CheckpointManager(config())
        state = manager.load(path, into={"model": weights.state_dict(), "step": 0})
        manager.close()
        return Loaded(int(state["step"]))
