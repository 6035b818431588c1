"""Train a small convolutional network on handwritten digits, so that it can be killed at any moment.

    holdfast run                                      reads ./holdfast.yaml
    python train.py --epochs 40                       works as well: state goes to ./runs/train

Without the lines marked with *, this is an ordinary training script.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch
from data import Digits
from model import small_cnn, weights_sha256
from torch import nn
from torch.utils.data import DataLoader

import holdfast  # *


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--accumulate", type=int, default=1, help="steps an optimizer step")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_deterministic(seed: int) -> None:
    """The same numbers on every run of the same machine: without it no two runs are equal, killed or not."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader) -> tuple[float, float]:
    """Mean loss and accuracy (0 to 1)."""
    model.eval()
    loss, right, seen = 0.0, 0, 0
    for images, labels in loader:
        logits = model(images)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
    model.train()
    return loss / seen, right / seen


def main() -> None:
    given = arguments()
    make_deterministic(given.seed)
    loader = DataLoader(
        Digits(train=True, augment=True), given.batch, shuffle=True, num_workers=2, persistent_workers=True
    )
    validation = DataLoader(Digits(train=False, augment=False), 360)
    model = small_cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    optimizer_steps = given.epochs * len(loader) // given.accumulate
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, optimizer_steps)

    run = holdfast.Run(model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)  # *
    for epoch in run.epochs(given.epochs):  # *
        for images, labels in run.steps(loader):  # *
            loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)
            (loss / given.accumulate).backward()
            if (run.step + 1) % given.accumulate == 0:
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            run.log(loss=loss)  # *
        val_loss, accuracy = evaluate(model, validation)
        run.log(val_loss=val_loss, accuracy=accuracy)  # *
        print(
            f"epoch {epoch + 1} of {given.epochs}: loss {loss:.4f}, validation {val_loss:.4f}, accuracy {accuracy:.4f}"
        )
    print(f"final weights sha256 {weights_sha256(model)}")


if __name__ == "__main__":
    main()
