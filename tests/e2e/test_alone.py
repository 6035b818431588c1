"""`Run(dir=…)` in a script started by hand: no supervisor, the library's own shim and archiver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

SCRIPT = """
    import os, signal, sys, torch, holdfast
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loader = torch.utils.data.DataLoader(torch.arange(40.0).view(10, 4) / 40, 2, shuffle=True)
    run = holdfast.Run(dir=sys.argv[1], model=model, optimizer=optimizer, loader=loader)
    for x in run.steps(loader, epochs=4):
        loss = (model(x) * torch.rand(())).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        if run.step == 7:
            run.save()
        if run.step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
    print(run.resumed, run.step, model.weight.tolist(), torch.rand(()).item())
"""


def train(script: Path, directory: Path, die_at: int) -> tuple[int, list[str]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    command = [sys.executable, str(script), str(directory), str(die_at)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout.split()


def test_a_script_killed_and_started_again_by_hand_ends_as_if_never_killed(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))

    assert train(script, tmp_path / "broken", 13) == (-signal.SIGKILL, [])
    resumed = train(script, tmp_path / "broken", -1)
    calm = train(script, tmp_path / "calm", -1)

    assert (calm[0], calm[1][:2]) == (0, ["False", "20"])
    assert (resumed[0], resumed[1][:2]) == (0, ["True", "20"])
    assert resumed[1][2:] == calm[1][2:]
