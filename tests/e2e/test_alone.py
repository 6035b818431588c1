"""A script without a supervisor, as in a notebook."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CLOSED_AND_MADE_AGAIN = """
import torch, holdfast
model = torch.nn.Linear(2, 1)
for _ in range(3):
    with holdfast.Run(model=model, dir="again") as run:
        print(run.resumed)
        run.save(reason="asked")
"""


def test_a_closed_run_can_be_made_again_at_once_in_the_same_process(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", CLOSED_AND_MADE_AGAIN], cwd=tmp_path, timeout=40, capture_output=True, text=True
    )

    assert said.stdout.split() == ["False", "True", "True"], said.stderr
