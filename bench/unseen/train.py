"""A training with everything that makes an exact resume hard, small enough to be killed hundreds of times.

Dropout, a shuffling loader with two workers and random augmentation in them, Python and NumPy randomness in the loop
itself, a scheduler, gradient accumulation across saves, and saves in the middle. Every step prints a line.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import types

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import holdfast

EPOCHS = int(os.environ.get("EPOCHS", "8"))
ACCUMULATE = 3  # does not divide the steps of an epoch, nor the steps between two saves
BATCH = 8
SAMPLES = 200  # 25 steps an epoch
# Torch's compiler, which nothing here uses and every optimizer imports: half the time it takes to start.
sys.modules["torch._dynamo"] = types.SimpleNamespace(disable=lambda f, *_, **__: f, graph_break=lambda: None)


class Noisy(Dataset):
    """Two clouds of points, moved at random each time one is looked at."""

    def __init__(self) -> None:
        drawn = torch.Generator().manual_seed(1)
        self.labels = torch.arange(SAMPLES) % 2
        self.points = torch.randn(SAMPLES, 12, generator=drawn) + self.labels[:, None]

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = random.gauss(0, 0.2) + float(np.random.normal(0, 0.2)) + 0.2 * torch.randn(12)
        return self.points[index] + noise, self.labels[index]


def main() -> None:
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would import a compiler
    torch.set_num_threads(1)
    loader = DataLoader(Noisy(), BATCH, shuffle=True, num_workers=2)
    model = nn.Sequential(
        nn.Linear(12, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 2),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * SAMPLES // BATCH // ACCUMULATE)

    run = holdfast.Run(model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
    for points, labels in run.steps(loader, epochs=EPOCHS):
        mix = float(np.random.beta(0.4, 0.4))
        mixed = mix * points + (1 - mix) * points.flip(0)
        soft = mix * nn.functional.one_hot(labels, 2) + (1 - mix) * nn.functional.one_hot(labels.flip(0), 2)
        loss = nn.functional.cross_entropy(model(mixed), soft.float()) * random.uniform(0.9, 1.1)
        (loss / ACCUMULATE).backward()
        step = run.step + 1
        if step % ACCUMULATE == 0:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        run.log(loss=loss)
        print(f"step {step} loss {loss.item()!r}\n", end="")  # one write, so that a kill leaves no half line
        if step % 31 == 0:
            run.save(reason="in the middle")

    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    print(f"final weights sha256 {digest.hexdigest()}")


if __name__ == "__main__":
    main()
