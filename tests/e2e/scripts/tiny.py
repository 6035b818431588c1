"""A small training run for end-to-end tests: all kinds of randomness, and the final weights' digest at its end."""

import hashlib
import os
import pathlib
import random
import sys
import time
import types

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import holdfast

EPOCHS = int(os.environ.get("EPOCHS", "4"))
STEP_S, SLOW_FROM = float(os.environ.get("STEP_S", "0.01")), int(os.environ.get("SLOW_FROM", "1000000"))
ENOUGH = pathlib.Path(os.environ["HOLDFAST_RUN_DIR"], "enough")
# Torch's compiler, which nothing here uses and every optimizer imports: half the time it takes to start.
sys.modules["torch._dynamo"] = types.SimpleNamespace(disable=lambda f, *_, **__: f, graph_break=lambda: None)


class Noisy(Dataset):
    def __init__(self) -> None:
        stream = torch.Generator().manual_seed(0)
        self.x = torch.randn(320, 16, generator=stream)
        self.y = (self.x.sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int):
        noise = 0.1 * torch.randn(16) + 0.01 * random.random() + 0.01 * float(np.random.rand())
        return self.x[index] + noise, self.y[index]


def work(step: int) -> None:
    """A step takes STEP_S; from SLOW_FROM on a second more, until a file `enough`: who watches need not hurry."""
    time.sleep(STEP_S)
    until_s = time.monotonic() + (step >= SLOW_FROM)
    while time.monotonic() < until_s and not ENOUGH.exists():
        time.sleep(0.01)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS * 10)
    size, workers = int(os.environ.get("BATCH", "32")), int(os.environ.get("WORKERS", "2"))
    loader = DataLoader(Noisy(), batch_size=size, shuffle=True, num_workers=workers)
    run = holdfast.Run(model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
    for epoch in run.epochs(EPOCHS):
        for clean, y in run.steps(loader):
            x = clean + 0.01 * random.random() + 0.01 * float(np.random.randn())
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            run.log(loss=loss)
            print(f"epoch {epoch} step {run.step + 1} loss {loss.item():.6f}", flush=True)
            work(run.step + 1)
        run.log(val_loss=float((epoch - 1.5) ** 2))
    run.close()
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
    pathlib.Path(os.environ["HOLDFAST_RUN_DIR"], "final.txt").write_text(digest)


if __name__ == "__main__":
    main()
