"""DLRover flash checkpoint: shared memory, then its saver process writes; `dlrover_latest.txt` names the newest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bench.engines import NOTHING, Engine, Loaded
from bench.job import Job, Weights
from bench.live import until

POLL_S = 0.01
LONGEST_S = 60  # of a save, before it is given up


def _checkpointer(folder: Path, run_id: str) -> Any:
    os.environ["TORCHELASTIC_RUN_ID"] = run_id
    from dlrover.python.common.storage import KeepLatestStepStrategy
    from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer

    keep = KeepLatestStepStrategy(max_to_keep=2, checkpoint_dir=str(folder))
    return DdpCheckpointer(str(folder), deletion_strategy=keep)


def _id(folder: Path) -> str:
    """Of the job: what its processes share in memory goes by it."""
    return f"bench-{folder.parent.name}-{folder.name}"


def _named(folder: Path) -> int:
    try:
        return int((folder / "dlrover_latest.txt").read_text().strip() or 0)
    except FileNotFoundError:
        return 0


class DlroverFlash(Engine):
    title = "DLRover flash checkpoint"
    documented = "https://github.com/intelligent-machine-learning/dlrover docs/blogs/flash_checkpoint.md; ddp.py:44"
    packages = ("torch", "dlrover")
    preload = ("dlrover.trainer.torch.flash_checkpoint.ddp",)
    retention = "KeepLatestStepStrategy(2)"
    note = "started without dlrover-run, whose agent would save what is in shared memory when the trainer dies"

    def train(self, folder: Path, job: Job) -> None:
        from dlrover.trainer.torch.flash_checkpoint.checkpointer import StorageType

        checkpointer = _checkpointer(folder, _id(folder))
        under_way: list[int] = []

        def look() -> None:
            while under_way and _named(folder) >= under_way[0]:
                job.saved(under_way.pop(0))

        def finish() -> None:
            until(lambda: look() or not under_way, within_s=LONGEST_S, what="the saver's write", every_s=POLL_S)

        job.each = look
        for step in job.steps():
            finish()  # one that finds the saver at work is skipped
            state = {"model": job.weights.state_dict(), "step": step}

            def taken(step: int = step, state: dict[str, Any] = state) -> bool:
                checkpointer.save_checkpoint(step, state, storage_type=StorageType.DISK)
                return bool(checkpointer._engine.latest_step == step)  # noqa: SLF001 (nothing else tells of a skip)

            until(taken, within_s=LONGEST_S, what="a save that is not skipped", every_s=POLL_S)
            under_way.append(step)
        finish()

    def load(self, folder: Path, weights: Weights) -> Loaded:
        return self._load(folder, weights, _id(folder))

    def reload(self, folder: Path, weights: Weights) -> Loaded:
        """As another job: one of the same name would share the training's memory and its saver."""
        return self._load(folder, weights, f"{_id(folder)}-reader")

    def _load(self, folder: Path, weights: Weights, run_id: str) -> Loaded:
        state = _checkpointer(folder, run_id).load_checkpoint()
        if not state:
            return NOTHING
        state = state.get("model_states", state)
        weights.load_state_dict(state["model"])
        return Loaded(state["step"])

    def forget(self, folder: Path) -> None:
        for path in Path("/dev/shm").glob(f"*{_id(folder)}*"):
            path.unlink()
