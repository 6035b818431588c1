"""A training whose state has 96 MiB, a weight and its momentum; until STEPS or a file `enough`."""

import os
import pathlib
import sys
import time
import types

import torch

import holdfast

# Torch's compiler, which nothing here uses and every optimizer imports: half the time it takes to start.
sys.modules["torch._dynamo"] = types.SimpleNamespace(disable=lambda f, *_, **__: f, graph_break=lambda: None)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(12, 1 << 20))
    optimizer = torch.optim.SGD([weight], 1e-3, momentum=0.9)
    run = holdfast.Run(weight=torch.nn.ParameterList([weight]), optimizer=optimizer)
    run.begin()
    enough = pathlib.Path(os.environ["HOLDFAST_RUN_DIR"], "enough")
    while run.step < int(os.environ.get("STEPS", "30")) and not enough.exists():
        optimizer.zero_grad(set_to_none=False)
        weight.grad = torch.ones_like(weight) if weight.grad is None else weight.grad.add_(1.0)
        optimizer.step()
        run.tick()
        time.sleep(0.1)
    run.close()


main()
