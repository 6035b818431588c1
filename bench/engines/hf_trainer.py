"""Hugging Face Trainer: `save_steps=1, save_total_limit=2`, `train(resume_from_checkpoint=True)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.engines import NOTHING, Engine, Loaded
from bench.job import Job, Weights


class _Resumed(Exception):
    """What was to be seen has been seen."""


def _trainer(folder: Path, weights: Weights, callback: Any, *, steps: int) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=1, save_total_limit=2, per_device_train_batch_size=1,
        use_cpu=True, report_to=[], disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    data = [{"x": torch.zeros(1), "labels": torch.zeros(1)}] * 1_000_000
    return Trainer(
        model=weights, args=arguments, train_dataset=data, optimizers=(optimizer, schedule), callbacks=[callback]
    )


class HfTrainer(Engine):
    title = "HF Trainer, save_total_limit=2"
    documented = "https://huggingface.co/docs/transformers/main_classes/trainer (resume_from_checkpoint)"
    packages = ("torch", "transformers", "accelerate")
    preload = ("transformers.trainer", "accelerate")
    retention = "save_total_limit=2"

    def train(self, folder: Path, job: Job) -> None:
        from transformers import TrainerCallback

        class Saves(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                job.begin(state.global_step)

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                job.saved(state.global_step)

        _trainer(folder, job.weights, Saves(), steps=job.last or 1_000_000).train()

    def load(self, folder: Path, weights: Weights) -> Loaded:
        from transformers import TrainerCallback
        from transformers.trainer_utils import get_last_checkpoint

        if get_last_checkpoint(str(folder)) is None:
            return NOTHING
        resumed: list[int] = []

        class Looks(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                resumed.append(state.global_step)
                raise _Resumed

        try:
            _trainer(folder, weights, Looks(), steps=1_000_000).train(resume_from_checkpoint=True)
        except _Resumed:
            return Loaded(resumed[0])
        raise AssertionError("training did not begin")
