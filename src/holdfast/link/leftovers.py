"""What agents leave in /tmp. One that ends removes its folder; what a killed one has left goes when others start."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from holdfast import fsio, runs
from holdfast.link import target
from holdfast.link.master import remove_stale

STALE_S = 86400.0


async def end_masters(place: Path) -> None:
    """Those that still listen in the folder of an agent that is gone."""
    for left in place.glob("*.[0-9]*"):
        if left.is_socket():
            await remove_stale(left)


async def sweep() -> None:
    """Folders of other agents that were killed, a day ago or more, and masters that have outlived them."""
    for place in runs.runtime_home().glob("link-*"):
        if place == target.folder() or not runs.is_ours(place):
            continue
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # somebody else is faster; it lives
            if time.time() - place.stat().st_mtime > STALE_S:
                with fsio.lock_file(place / "agent.lock"):
                    await end_masters(place)
                    remove(place)


def remove(place: Path) -> None:
    """The folder of an agent that has ended; not where somebody is just starting the next one."""
    with contextlib.suppress(BlockingIOError), fsio.lock_file(place / "starting.lock"):
        shutil.rmtree(place, ignore_errors=True)
