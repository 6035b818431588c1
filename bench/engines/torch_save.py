"""`torch.save` to one file that is written again and again."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.engines import NOTHING, Engine, Loaded
from bench.job import Job, Weights


class TorchSave(Engine):
    title = "torch.save, one file"
    documented = "https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html (general checkpoint)"
    retention = "overwrites"

    def train(self, folder: Path, job: Job) -> None:
        for step in job.steps():
            torch.save({"model": job.weights.state_dict(), "step": step}, folder / "checkpoint.pt")
            job.saved(step)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        path = folder / "checkpoint.pt"
        if not path.exists():
            return NOTHING
        state = torch.load(path, weights_only=True)
        weights.load_state_dict(state["model"])
        return Loaded(state["step"])
