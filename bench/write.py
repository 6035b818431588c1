"""How fast a state becomes durable: `dd oflag=direct conv=fsync` beside our commit, without and with the read-back.

They take turns on the same folder, so that all meet the same disk; the medians are compared. dd writes one block of
zeros again and again, which stays in the processor's cache; `raw` writes as many bytes as the state has from as much
memory, in large direct calls.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import disk, machine
from holdfast.checkpoint.commit import Part, commit
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.slots import HEADER_BYTES

CHUNK_BYTES = 2 << 20
TARGET_RATIO = 0.85


def state(size_bytes: int) -> Part:
    """A slot full of random chunks, as a rank would seal it."""
    count = size_bytes // CHUNK_BYTES
    slot = memoryview(mmap.mmap(-1, HEADER_BYTES + count * CHUNK_BYTES))
    chunks = []
    for index in range(count):
        at = HEADER_BYTES + index * CHUNK_BYTES
        tensor = {"name": f"t{index}", "dtype": "uint8", "shape": [CHUNK_BYTES], "global_shape": [CHUNK_BYTES]}
        box = {**tensor, "index": [0], "offset": 0, "bytes": CHUNK_BYTES}
        chunks.append({"offset": at, "bytes": CHUNK_BYTES, "kind": "other", "tensors": [box]})
    head = {
        "version": 1, "rank": 0, "world": 1, "run": "bench", "term": 1, "epoch": 0, "time_s": 0.0, "reason": "bench",
        "metrics": {}, "final": False, "state": {}, "chunks": chunks,
    }  # fmt: skip
    return Part(head, slot)


def saved(part: Part, folder: Folder, number: int) -> tuple[float, float]:
    """MB/s of one commit of new bytes, (without, with) the read-back."""
    for chunk in part.table["chunks"]:
        part.slot[chunk["offset"] : chunk["offset"] + CHUNK_BYTES] = os.urandom(CHUNK_BYTES)
    part.table.update(sequence=number, step=number, save_id=f"1-{number}")
    made = commit(folder, [part])
    megabytes = made.written_bytes / 1e6
    return megabytes / made.write_seconds, megabytes / (made.write_seconds + made.verify_seconds)


def copied(size_bytes: int, path: Path) -> float:
    """MB/s of dd."""
    path.unlink(missing_ok=True)
    blocks = size_bytes >> 20
    argv = ["dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={blocks}", "oflag=direct", "conv=fsync", "status=none"]
    begun_s = time.perf_counter()
    subprocess.run(argv, check=True)
    seconds = time.perf_counter() - begun_s
    path.unlink()
    return (blocks << 20) / 1e6 / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="on the disk to measure")
    parser.add_argument("--no-keep", action="store_true", help="print only")
    given = parser.parse_args()
    size_bytes = given.megabytes * 1_000_000
    part = state(size_bytes)
    rates: dict[str, list[float]] = {"dd": [], "raw": [], "commit": [], "commit and read-back": []}
    with tempfile.TemporaryDirectory(dir=given.dir, prefix="write-") as root:
        for number in range(given.rounds + 1):
            folder = Folder(Path(root) / "checkpoints")
            folder.open()
            without, whole = saved(part, folder, number)
            shutil.rmtree(folder.root)
            zeros = copied(size_bytes, Path(root) / "dd")
            raw = size_bytes / 1e6 / disk.write_s(Path(root), size_bytes)
            if number:  # the first round warms up
                for name, rate in zip(rates, (zeros, raw, without, whole), strict=True):
                    rates[name].append(round(rate))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratios = {peer: medians["commit"] / medians[peer] for peer in ("dd", "raw")}
    for name, rate in medians.items():
        print(f"{name:22} {rate:6.0f} MB/s")
    for peer, ratio in ratios.items():
        print(f"{'commit of ' + peer:22} {ratio:6.2f}")
    met = "met" if ratios["dd"] >= TARGET_RATIO else "NOT met"
    print(f"{met}: commit {ratios['dd']:.2f} x dd, target {TARGET_RATIO}")
    if not given.no_keep:
        fields = {"megabytes": given.megabytes, "medians_mb_s": medians, "commit_of": ratios, "rounds_mb_s": rates}
        print(machine.keep("write", fields))
    return 0


if __name__ == "__main__":
    sys.exit(main())
