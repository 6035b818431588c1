"""`torch.save` to a file per step; the newest wins."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.engines import NOTHING, Engine, Loaded, newest
from bench.engines.torch_save import read
from bench.job import Job, Weights


class TorchSaveSteps(Engine):
    title = "torch.save, file per step"
    documented = "https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html (general checkpoint)"

    def train(self, folder: Path, job: Job) -> None:
        for step in job.steps():
            torch.save({"model": job.weights.state_dict(), "step": step}, folder / f"step-{step}.pt")
            job.saved(step)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        path = newest(folder, "step-*.pt")
        return NOTHING if path is None else read(path, weights)
