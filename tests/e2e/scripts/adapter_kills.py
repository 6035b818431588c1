"""Kill one of two ranks at random while they save over one name again and again; look what is left. FOLDER KIND KILLS.

torch is imported once; the ranks are forked from here, so a kill costs a second. Every element of the state is the
number of the save, so a checkpoint of two saves shows.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from holdfast.integrations import filesystem  # noqa: F401 (before the forks, which then need not)
from holdfast.integrations.dcp import HoldfastReader, HoldfastWriter

KINDS = ("files", "tensors")
RANKS, ROWS = 2, 300
_FORK = multiprocessing.get_context("fork")


def save(root: Path, kind: str, state: dict[str, Any]) -> None:
    if kind == "files":
        dcp.save(state, checkpoint_id=f"holdfast://{root}/last")
    else:
        dcp.save(state, storage_writer=HoldfastWriter(root, "last"))


def rank(number: int, root: Path, kind: str, store: str, first: int, told: Connection) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    for value in range(first, first + 10_000):
        local = torch.full((ROWS, 1000), float(value))
        save(root, kind, {"w": DTensor.from_local(local, mesh, [Shard(0)]), "step": value})
        if number == 0:
            told.send(value)


def look(root: Path, kind: str, told: Connection) -> None:
    """Load what is there, then save once more and see that the dead have left nothing."""
    found = {"w": torch.zeros(RANKS * ROWS, 1000), "step": 0}
    if kind == "files":
        dcp.load(found, checkpoint_id=f"holdfast://{root}/last")
    else:
        dcp.load(found, storage_reader=HoldfastReader(root, "last"))
    values = {found["step"], *found["w"].unique().tolist()}
    save(root, kind, found)
    left = [str(path) for path in (root / "staging").glob("*/*")]
    packs = sum(path.stat().st_size for path in root.glob("packs/*/*.hfp"))
    told.send((values, left, packs < 2 * found["w"].nbytes))


def in_a_child(work: Any, *arguments: Any) -> Any:
    ours, theirs = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=work, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def trial(root: Path, kind: str, first: int, rng: random.Random) -> int:
    """One kill. Returns the number of the save that is there."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = _FORK.Pipe(duplex=False)
        arguments = (root, kind, f"{folder}/store", first, theirs)
        ranks = [_FORK.Process(target=rank, args=(number, *arguments)) for number in range(RANKS)]
        for one in ranks:
            one.start()
        theirs.close()
        acknowledged = ours.recv()
        until = rng.uniform(0, 0.6)
        while ours.poll(until):
            acknowledged, until = ours.recv(), rng.uniform(0, 0.2)
            if rng.random() < 0.4:
                break
        for one in rng.sample(ranks, RANKS):
            os.kill(one.pid or 0, signal.SIGKILL)
            one.join()
        try:
            while ours.poll():
                acknowledged = ours.recv()
        except EOFError:
            pass
    values, left, is_small = in_a_child(look, root, kind)
    assert len(values) == 1, f"torn: {values}"
    assert values <= {acknowledged, acknowledged + 1}, f"{values} after {acknowledged} was acknowledged"
    assert not left and is_small, f"left over: {left}"
    print(f"whole: {values} after {acknowledged}", flush=True)
    return int(values.pop())


def main() -> None:
    root, kind, kills = Path(sys.argv[1]) / "ckpts", sys.argv[2], int(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rng, value = random.Random(7), 0
    for _ in range(kills):
        value = trial(root, kind, value + 1, rng)


if __name__ == "__main__":
    main()
