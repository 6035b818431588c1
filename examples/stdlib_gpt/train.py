"""Train a byte-level GPT on the source of Python's standard library: a longer run, counted in steps and not in epochs.

holdfast run
holdfast run --env STEPS=200
"""

from __future__ import annotations

import argparse

import torch
from data import windows
from model import ByteGPT
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, RandomSampler

import holdfast

VALIDATE_EVERY = 100  # steps


def loss_of(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Mean cross-entropy in nats a byte."""
    inputs, targets = batch
    return cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def validate(model: nn.Module, held_out: Dataset) -> float:
    """Mean loss over the same 64 windows each time."""
    model.eval()
    stride = len(held_out) // 64
    batch = [torch.stack(part) for part in zip(*(held_out[i * stride] for i in range(64)), strict=True)]
    loss = loss_of(model, batch).item()
    model.train()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16, help="windows a step")
    parser.add_argument("--context", type=int, default=128, help="bytes a window")
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)

    training, held_out = windows(given.context)
    sampler = RandomSampler(training, replacement=True, num_samples=given.steps * given.batch)
    loader = DataLoader(training, given.batch, sampler=sampler, num_workers=2)
    model = ByteGPT(context=given.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=given.steps)

    run = holdfast.Run(model=model, optimizer=optimizer, scheduler=scheduler, loader=loader)
    for batch in run.steps(loader, epochs=1):
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        run.log(loss=loss)
        if (run.step + 1) % VALIDATE_EVERY == 0:
            val_loss = validate(model, held_out)
            run.log(val_loss=val_loss)
            print(f"step {run.step + 1} of {given.steps}: loss {loss:.4f}, validation {val_loss:.4f}")


if __name__ == "__main__":
    main()
