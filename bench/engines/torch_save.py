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
        return read(path, weights) if path.exists() else NOTHING


def read(path: Path, weights: Weights) -> Loaded:
    """`torch.load` of model and step."""
    state = torch.load(path, weights_only=True)
    weights.load_state_dict(state["model"])
    return Loaded(state["step"])
