"""Quick steps over a state of STATE_MB, all of which changes with every step; until STEPS or a file `enough`."""

import os
import pathlib
import sys
import time
import types

import torch

import holdfast

# Torch's compiler, which nothing here uses and every optimizer imports: half the time it takes to start.
sys.modules["torch._dynamo"] = types.SimpleNamespace(disable=lambda f, *_, **__: f, graph_break=lambda: None)
torch.set_num_threads(1)
begin = torch.arange(int(os.environ["STATE_MB"]) << 18, dtype=torch.float32)
weights = torch.nn.Parameter(begin.clone())
optimizer = torch.optim.SGD([weights], lr=1.0)
model = torch.nn.Module()
model.weights = weights
run = holdfast.Run(model=model, optimizer=optimizer)
run.begin()
enough = pathlib.Path(os.environ["HOLDFAST_RUN_DIR"], "enough")
while run.step < int(os.environ["STEPS"]) and not enough.exists():
    weights.grad = torch.full_like(weights, -1.0)
    optimizer.step()
    optimizer.zero_grad()
    run.log(value=float(weights.detach()[0]))
    time.sleep(0.05)
    run.tick()
run.close()
assert torch.equal(weights.detach() - begin, torch.full_like(begin, run.step)), "the weights count the steps"
