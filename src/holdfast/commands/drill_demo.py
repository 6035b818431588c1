"""A small run to break, in a temporary home of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from holdfast import process
from holdfast.commands.liveness import POLL_S, live
from holdfast.errors import HoldfastError
from holdfast.runs import RunDir

RUN_FILE = """\
name: drill
run: {python} train.py
checkpoint: {{every: [25 steps], keep: {{last: 2}}}}
watchdog: {{startup: 2m, progress: 10s, action: restart}}
restart: {{max_restarts: 100, window: {{restarts: 100, per: 1h}}, backoff: {{initial: 1s, factor: 1, max: 1s}}}}
stop_grace_period: 10s
"""

# Learns a fixed linear map for as long as it is left alone; a step takes 20 ms and more.
TRAINING = """\
import time

import torch

import holdfast

torch.manual_seed(0)
target = torch.randn(256, 256)
inputs = torch.utils.data.TensorDataset(torch.randn(4096, 256))
loader = torch.utils.data.DataLoader(inputs, batch_size=64, shuffle=True)
model = torch.nn.Linear(256, 256)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

run = holdfast.Run(model=model, optimizer=optimizer, loader=loader)
for (batch,) in run.steps(loader, epochs=100_000):
    loss = torch.nn.functional.mse_loss(model(batch), batch @ target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.log(loss=loss)
    time.sleep(0.02)
"""


def start() -> RunDir:
    """Start it in a temporary home, detached. Raises HoldfastError."""
    home = Path(tempfile.mkdtemp(prefix="holdfast-drill-"))
    (home / "train.py").write_text(TRAINING)
    (home / "holdfast.yaml").write_text(RUN_FILE.format(python=sys.executable))
    environ = {**os.environ, "HOLDFAST_HOME": str(home / "home")}
    argv = [*process.command(), "run", "-d", "--json"]
    done = subprocess.run(argv, cwd=home, env=environ, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise HoldfastError(f"the demo run did not start: exit code {done.returncode}", hint=f"look into {home}")
    return RunDir(Path(json.loads(done.stdout)["dir"]))


def end(run: RunDir, *, within_s: float = 30.0) -> None:
    """Kill it, and return when nothing of it lives. Raises HoldfastError."""
    from holdfast.node import client

    deadline = time.monotonic() + within_s
    while live(run):
        with contextlib.suppress(client.NotLive):  # a supervisor may be on its way
            client.call(run, "POST", "/kill")
        if time.monotonic() > deadline:
            raise HoldfastError(f"{run.id} is still live {within_s:g} s after kill", hint=f"see {run.node_log}")
        time.sleep(POLL_S)


def delete(run: RunDir) -> None:
    """With the whole temporary home."""
    shutil.rmtree(run.root.parent.parent.parent)
    shutil.rmtree(run.runtime, ignore_errors=True)
