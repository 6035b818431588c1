"""Steps that cost next to nothing and a state that costs much to copy; the loss falls at every step.

It trains for TRAIN_S seconds, and on until there is a file `enough`. With DIES it then ends by SIGKILL, and the next
attempt after a few steps.
"""

import os
import pathlib
import signal
import time

import torch

import holdfast


def main() -> None:
    torch.set_num_threads(1)
    weights = torch.nn.ParameterList([torch.rand(64 << 18)])
    with holdfast.Run(weights=weights) as run:
        until_s = time.monotonic() + (0.5 if run.resumed else float(os.environ["TRAIN_S"]))
        enough = pathlib.Path(os.environ["HOLDFAST_RUN_DIR"], "enough")
        while time.monotonic() < until_s or not enough.exists():
            time.sleep(0.01)
            run.log(loss=-time.time())
            run.tick()
        if "DIES" in os.environ and not run.resumed:
            os.kill(os.getpid(), signal.SIGKILL)


main()
