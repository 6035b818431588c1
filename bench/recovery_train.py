"""One training script, three ways to keep its state: none, `torch.save` under torchrun, holdfast.

Each completed optimizer step is a line `step monotonic_ns` in --steps-log, written at once.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

EVERY = 10  # steps between two checkpoints, for both
STEPS = 100_000  # never reached


def parts(width: int) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader]:
    """Model, optimizer and loader; about 8 x width squared bytes of weights."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
    data = TensorDataset(torch.randn(4096, 64), torch.randn(4096, width))
    return model, torch.optim.AdamW(model.parameters()), DataLoader(data, 8, shuffle=True, num_workers=2)


def batches(loader: DataLoader) -> object:
    """Batches without end."""
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saver", choices=["none", "torch", "holdfast"], required=True)
    parser.add_argument("--steps-log", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="file of --saver torch")
    parser.add_argument("--width", type=int, default=512)
    given = parser.parse_args()
    model, optimizer, loader = parts(given.width)
    log = os.open(given.steps_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def step_on(batch: list[Tensor], step: int) -> None:
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        os.write(log, f"{step} {time.monotonic_ns()}\n".encode())

    if given.saver == "holdfast":
        import holdfast

        run = holdfast.Run(model=model, optimizer=optimizer, loader=loader)
        for batch in run.steps(loader, epochs=STEPS):
            step_on(batch, run.step + 1)
        return
    step = 0
    if given.saver == "torch" and given.checkpoint.exists():
        state = torch.load(given.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    for batch in batches(loader):
        step += 1
        step_on(batch, step)
        if given.saver == "torch" and step % EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, given.checkpoint.with_suffix(".part"))
            given.checkpoint.with_suffix(".part").replace(given.checkpoint)


if __name__ == "__main__":
    main()
