"""safetensors, a file per step; the newest wins."""

from __future__ import annotations

from pathlib import Path

from bench.engines import NOTHING, Engine, Loaded, newest, number
from bench.job import Job, Weights


class SafetensorsSteps(Engine):
    title = "safetensors, file per step"
    documented = "https://huggingface.co/docs/safetensors/api/torch (save_model, load_model)"
    packages = ("torch", "safetensors")
    preload = ("safetensors.torch",)

    def train(self, folder: Path, job: Job) -> None:
        from safetensors.torch import save_model

        for step in job.steps():
            save_model(job.weights, str(folder / f"step-{step}.safetensors"))
            job.saved(step)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        from safetensors.torch import load_model

        path = newest(folder, "step-*.safetensors")
        if path is None:
            return NOTHING
        load_model(weights, path)
        return Loaded(number(path))
