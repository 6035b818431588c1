"""A training whose state has 96 MiB: a weight and its momentum."""

import os
import time

import torch

import holdfast


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(12, 1 << 20))
    optimizer = torch.optim.SGD([weight], 1e-3, momentum=0.9)
    run = holdfast.Run(weight=torch.nn.ParameterList([weight]), optimizer=optimizer)
    run.begin()
    while run.step < int(os.environ.get("STEPS", "30")):
        optimizer.zero_grad(set_to_none=False)
        weight.grad = torch.ones_like(weight) if weight.grad is None else weight.grad.add_(1.0)
        optimizer.step()
        run.tick()
        time.sleep(0.1)
    run.close()


main()
