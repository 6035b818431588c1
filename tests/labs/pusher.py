"""A process that sends the newest checkpoint of a folder, to be killed at any moment.

python -m tests.labs.pusher FOLDER URL BYTES_PER_S
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from holdfast.checkpoint import load
from holdfast.mirror import throttle
from holdfast.mirror.keeper import Keeper
from holdfast.stores import connect


def main(root: str, url: str, bytes_per_s: str) -> None:
    throttle.BURST_S = 0.05  # small packs: many of them in little data
    keeper = Keeper(Path(root), connect(url, os.environ), bytes_per_s=float(bytes_per_s))
    keeper.push(load.checkpoints(Path(root))[-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
