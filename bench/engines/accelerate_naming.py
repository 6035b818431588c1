"""Accelerate with automatic naming and a limit of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.engines import NOTHING, Engine, Loaded
from bench.job import Job, Weights


class AccelerateNaming(Engine):
    title = "Accelerate, total_limit=2"
    documented = "https://huggingface.co/docs/accelerate/usage_guides/checkpoint (automatic naming)"
    packages = ("torch", "accelerate")
    preload = ("accelerate",)
    retention = "total_limit=2"

    def _prepared(self, folder: Path, weights: Weights) -> Any:
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        project = ProjectConfiguration(project_dir=str(folder), automatic_checkpoint_naming=True, total_limit=2)
        accelerator = Accelerator(cpu=True, project_config=project)
        accelerator.prepare(weights, torch.optim.SGD(weights.parameters(), lr=0.0))
        return accelerator

    def train(self, folder: Path, job: Job) -> None:
        accelerator = self._prepared(folder, job.weights)
        for step in job.steps():
            accelerator.save_state()
            job.saved(step)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        accelerator = self._prepared(folder, weights)
        if not (folder / "checkpoints").exists():
            return NOTHING
        chosen: list[str] = []
        accelerator.register_load_state_pre_hook(lambda _models, folder: chosen.append(folder))
        accelerator.load_state()
        return Loaded(int(chosen[0].rpartition("_")[2]) + 1)  # it counts from 0
