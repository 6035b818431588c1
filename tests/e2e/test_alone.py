"""A script without a supervisor: shim and archiver of our own, killed with -9, and equal in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import hashlib, json, os, pathlib, random, signal, sys, time, types
import numpy as np, torch, holdfast
from torch.utils.data import DataLoader, Dataset

class Noisy(Dataset):
    def __len__(self):
        return 12
    def __getitem__(self, index):
        return torch.cat([torch.tensor([index, random.random(), np.random.rand()]), torch.rand(2)]).float()

def is_committed(step):
    if step == 0:
        return True
    log = pathlib.Path(sys.argv[1], "archiver.jsonl").read_bytes()
    lines = [json.loads(line) for line in log.splitlines(keepends=True) if line.endswith(b"\\n")]
    return any(line["event"] == "committed" and line["step"] == step for line in lines)

sys.modules["torch._dynamo"] = types.SimpleNamespace(disable=lambda f, *_, **__: f, graph_break=lambda: None)  # slow
torch.manual_seed(3)
model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters())
loader = DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=1)
run = holdfast.Run(model=model, optimizer=optimizer, loader=loader, dir=sys.argv[1])
run.on("committed", lambda occasion: occasion.step >= int(sys.argv[2]) > 0 and os.kill(os.getpid(), signal.SIGKILL))
for x in run.steps(loader, epochs=3):
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    run.save()
    while int(sys.argv[2]) and not is_committed(run.step):  # else the last step may be done before a commit is heard of
        time.sleep(0.01)
run.close()
print(run.step, hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest())
"""


def start(folder: Path, kill_after: int) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), str(kill_after)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100)


@pytest.mark.e2e
def test_killed_three_times_it_ends_as_if_never_killed(tmp_path: Path) -> None:
    calm = start(tmp_path / "calm", 0)
    assert calm.returncode == 0, calm.stderr

    killed = [start(tmp_path / "hunted", after).returncode for after in (2, 4, 6)]
    last = start(tmp_path / "hunted", 0)

    assert killed == [-signal.SIGKILL] * 3
    assert last.stdout == calm.stdout
    assert last.stdout.startswith("9 ")


CLOSED_AND_MADE_AGAIN = """
import torch, holdfast
model = torch.nn.Linear(2, 1)
for _ in range(3):
    with holdfast.Run(model=model, dir="again") as run:
        print(run.resumed)
        run.save(reason="asked")
"""


@pytest.mark.e2e
def test_a_closed_run_can_be_made_again_at_once_in_the_same_process(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", CLOSED_AND_MADE_AGAIN], cwd=tmp_path, timeout=40, capture_output=True, text=True
    )

    assert said.stdout.split() == ["False", "True", "True"], said.stderr
