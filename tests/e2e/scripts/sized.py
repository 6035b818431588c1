"""A state of COUNT tensors with ELEMENTS numbers each, all different; every step adds 1 to the first of each."""

import os
import time

import torch

import holdfast

COUNT, ELEMENTS, SLICE = int(os.environ["COUNT"]), int(os.environ["ELEMENTS"]), 1 << 24

torch.set_num_threads(1)
model = torch.nn.Module()
for number in range(COUNT):
    model.register_buffer(f"weight_{number}", torch.arange(number, number + ELEMENTS, dtype=torch.int32))
run = holdfast.Run(model=model)
run.begin()
while run.step < int(os.environ["STEPS"]):
    for tensor in model.buffers():
        tensor[0] += 1
    time.sleep(float(os.environ["STEP_S"]))
    run.tick()
run.close()
for number, tensor in enumerate(model.buffers()):
    assert tensor[0] == number + run.step, f"weight_{number} has counted {tensor[0] - number} of {run.step} steps"
    for start in range(1, ELEMENTS, SLICE):
        part = tensor[start : start + SLICE]
        expected = torch.arange(number + start, number + start + len(part), dtype=torch.int32)
        assert torch.equal(part, expected), f"weight_{number} is another from {start} on"
