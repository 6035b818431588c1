"""Lightning: ModelCheckpoint each step with `save_last=True`, `fit(ckpt_path="last")`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from bench.engines import NOTHING, Engine, Loaded
from bench.job import Job, Weights


class _Resumed(Exception):
    """What was to be seen has been seen."""


def _fit(folder: Path, module: Any, callback: Any, *, steps: int, resume: str | None = None) -> None:
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    keeper = ModelCheckpoint(dirpath=folder, every_n_train_steps=1, save_last=True)
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, callbacks=[callback, keeper],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    data = DataLoader(torch.zeros(1_000_000, 1), batch_size=1)
    trainer.fit(module, data, ckpt_path=resume)


def _module(weights: Weights) -> Any:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weights = weights

        def training_step(self, batch: Any, index: int) -> Any:
            return self.weights()["loss"]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    return Module()


class LightningTrainer(Engine):
    title = "Lightning ModelCheckpoint"
    documented = "https://lightning.ai/docs/pytorch/stable/common/checkpointing_basic.html; ModelCheckpoint(save_last)"
    packages = ("torch", "lightning")
    preload = ("lightning", "lightning.pytorch.callbacks")
    retention = "save_top_k=1, save_last"
    moves_from_tmp = True
    note = "save_last=True, as documented, writes each checkpoint twice; save_last='link' makes a link of the second"

    def train(self, folder: Path, job: Job) -> None:
        import lightning

        class Saves(lightning.Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
                if trainer.global_step:
                    job.saved(trainer.global_step)
                job.begin(trainer.global_step + 1)

            def on_train_end(self, trainer: Any, module: Any) -> None:
                job.saved(trainer.global_step)

        _fit(folder, _module(job.weights), Saves(), steps=job.last or -1)

    def load(self, folder: Path, weights: Weights) -> Loaded:
        import lightning

        if not any(folder.glob("*.ckpt")):
            return NOTHING
        resumed: list[int] = []

        class Looks(lightning.Callback):
            def on_train_start(self, trainer: Any, module: Any) -> None:
                resumed.append(trainer.global_step)
                raise _Resumed

        try:
            _fit(folder, _module(weights), Looks(), steps=-1, resume="last")
        except _Resumed:
            return Loaded(resumed[0]) if resumed[0] else NOTHING
        raise AssertionError("training did not begin")
