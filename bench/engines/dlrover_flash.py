"""DLRover flash checkpoint: shared memory, then its saver process writes; `dlrover_latest.txt` names the newest."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from bench.engines import NOTHING, Engine, Loaded
from bench.job import Job, Weights

POLL_S = 0.01
SKIPPED_S = 5  # a save that finds the shared memory busy is skipped; then it is asked for again


def _checkpointer(folder: Path) -> Any:
    os.environ["TORCHELASTIC_RUN_ID"] = _id(folder)
    from dlrover.python.common.storage import KeepLatestStepStrategy
    from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer

    keep = KeepLatestStepStrategy(max_to_keep=2, checkpoint_dir=str(folder))
    return DdpCheckpointer(str(folder), deletion_strategy=keep)


def _id(folder: Path) -> str:
    return f"bench-{folder.parent.name}-{folder.name}"


def _named(folder: Path) -> int:
    try:
        return int((folder / "dlrover_latest.txt").read_text().strip() or 0)
    except FileNotFoundError:
        return 0


def _wait(folder: Path, step: int) -> bool:
    deadline_s = time.monotonic() + SKIPPED_S
    while _named(folder) < step and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    return _named(folder) >= step


class DlroverFlash(Engine):
    title = "DLRover flash checkpoint"
    documented = "https://github.com/intelligent-machine-learning/dlrover docs/blogs/flash_checkpoint.md; ddp.py:44"
    packages = ("torch", "dlrover")
    preload = ("dlrover.trainer.torch.flash_checkpoint.ddp",)
    retention = "KeepLatestStepStrategy(2)"
    note = "started without dlrover-run, whose agent would save what is in shared memory when the trainer dies"

    def train(self, folder: Path, job: Job) -> None:
        from dlrover.trainer.torch.flash_checkpoint.checkpointer import StorageType

        checkpointer = _checkpointer(folder)
        for step in job.steps():
            state = {"model": job.weights.state_dict(), "step": step}
            checkpointer.save_checkpoint(step, state, storage_type=StorageType.DISK)
            while not _wait(folder, step):
                checkpointer.save_checkpoint(step, state, storage_type=StorageType.DISK)
            job.saved(step)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        state = _checkpointer(folder).load_checkpoint()
        if not state:
            return NOTHING
        state = state.get("model_states", state)
        weights.load_state_dict(state["model"])
        return Loaded(state["step"])

    def forget(self, folder: Path) -> None:
        for path in Path("/dev/shm").glob(f"*{_id(folder)}*"):
            path.unlink()
