"""What careful hands write: temporary file, flush, fsync, rename, fsync of the folder; a file per step.

It loses nothing that was acknowledged; it cannot tell a flipped bit.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from bench.engines import NOTHING, Engine, Loaded, newest
from bench.engines.torch_save import read
from bench.job import Job, Weights

KEPT = 3


class Reference(Engine):
    title = "by hand with fsync"
    documented = "rename(2), fsync(2): https://man7.org/linux/man-pages/man2/fsync.2.html"
    retention = f"removes all but {KEPT}, after the rename"

    def train(self, folder: Path, job: Job) -> None:
        for step in job.steps():
            self._save({"model": job.weights.state_dict(), "step": step}, folder / f"step-{step}.pt")
            job.saved(step)
            (folder / f"step-{step - KEPT}.pt").unlink(missing_ok=True)

    def _save(self, state: object, path: Path) -> None:
        draft = path.with_suffix(".tmp")
        with draft.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        parent = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        path = newest(folder, "step-*.pt")
        return NOTHING if path is None else read(path, weights)
