"""The same digits, model and schedule, with checkpoints as many well-known scripts write them: for comparison only.

Every N steps `torch.save` writes straight to the final name; at the start the newest file wins; neither the random
generators nor the position inside the epoch are kept. Killed while it saves, it leaves a torn file that the next start
trips over; killed elsewhere, it repeats and skips data, and the final weights are others.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "digits"))
from data import Digits
from model import small_cnn, weights_sha256


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step in its name."""
    return max(folder.glob("step-*.pt"), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--every", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--out", type=Path, default=Path("runs/plain"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    loader = DataLoader(Digits(train=True, augment=True), 64, shuffle=True, num_workers=2, persistent_workers=True)
    model = small_cnn()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.epochs * len(loader))

    step = 0
    if found := newest(given.out):
        state = torch.load(found, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        step = state["step"]
        print(f"resumed {found.name}")

    log = (given.out / "steps.jsonl").open("a", buffering=1)
    while step < given.epochs * len(loader):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            log.write(json.dumps({"step": step, "loss": loss.item()}) + "\n")
            if step % given.every == 0:
                state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
                state = {name: part.state_dict() for name, part in state.items()} | {"step": step}
                torch.save(state, given.out / f"step-{step:08d}.pt")
            if step >= given.epochs * len(loader):
                break
    print(f"final weights sha256 {weights_sha256(model)}")


if __name__ == "__main__":
    main()
