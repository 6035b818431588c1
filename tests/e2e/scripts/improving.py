"""Steps that cost next to nothing and a state that costs much to copy; the loss falls at every step.

With DIES it ends by SIGKILL after TRAIN_S seconds, and the next attempt after a few steps.
"""

import os
import signal
import time

import torch

import holdfast


def main() -> None:
    torch.set_num_threads(1)
    weights = torch.nn.ParameterList([torch.rand(64 << 18)])
    with holdfast.Run(weights=weights) as run:
        until_s = time.monotonic() + (0.5 if run.resumed else float(os.environ["TRAIN_S"]))
        while time.monotonic() < until_s:
            time.sleep(0.01)
            run.log(loss=-time.time())
            run.tick()
        if "DIES" in os.environ and not run.resumed:
            os.kill(os.getpid(), signal.SIGKILL)


main()
