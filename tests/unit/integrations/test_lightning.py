"""Lightning and Fabric with nothing but a URL: checkpoints kept and removed by ModelCheckpoint, resumed by path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from holdfast.checkpoint import load
from holdfast.integrations.filesystem import HoldfastFileSystem

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning has many to say about short trainings on a CPU


class Model(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        loss = self.layer(batch).square().sum()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "lit"


def fit(root: Path, epochs: int, resume: str | None = None) -> tuple[lightning.Trainer, Model, ModelCheckpoint]:
    kept = ModelCheckpoint(save_top_k=1, monitor="loss", save_last=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(default_root_dir=f"holdfast://{root}", max_epochs=epochs, callbacks=[kept], **quiet)
    model = Model()
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(8, 4), batch_size=4), ckpt_path=resume)
    return trainer, model, kept


def test_a_trainer_saves_to_a_url_and_resumes_from_it(root: Path) -> None:
    _, model, kept = fit(root, 2)
    logs = root / "lightning_logs" / "version_0"
    assert kept.last_model_path == f"holdfast://{logs}/checkpoints/last.ckpt"
    files = HoldfastFileSystem().find(str(logs))
    assert [Path(file).name for file in files if file.endswith(".ckpt")] == ["epoch=1-step=4.ckpt", "last.ckpt"]
    assert f"{logs}/hparams.yaml" in files

    with HoldfastFileSystem().open(kept.last_model_path, "rb") as file:
        stored = torch.load(file, weights_only=False)
    assert torch.equal(stored["state_dict"]["layer.weight"], model.layer.weight)

    trainer, _, _ = fit(root, 3, resume=kept.last_model_path)
    assert trainer.global_step == 6
    assert {info.step for info in load.checkpoints(logs)} == {0, 4}
    assert [problem for info in load.checkpoints(logs) for problem in load.verify(logs, info)] == []


def test_its_checkpoint_io_saves_loads_and_removes(root: Path) -> None:
    plugin, url = TorchCheckpointIO(), f"holdfast://{root}/ckpts/a.ckpt"

    plugin.save_checkpoint({"w": torch.ones(3)}, url)
    found = plugin.load_checkpoint(url)
    plugin.remove_checkpoint(url)

    assert torch.equal(found["w"], torch.ones(3))
    with pytest.raises(FileNotFoundError):
        plugin.load_checkpoint(url)


def test_fabric_saves_and_loads(root: Path) -> None:
    fabric, url = lightning.Fabric(accelerator="cpu", devices=1), f"holdfast://{root}/ckpts/a.ckpt"

    fabric.save(url, {"w": torch.ones(3), "step": 7})

    assert fabric.load(url)["step"] == 7
