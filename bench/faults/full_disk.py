"""The disk fills up in the middle of a save, and is still full when training starts again."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.disks import Disk, needs_root
from bench.engines import Engine
from bench.faults import Bench, Fault, Result, chance_of, first_saves, result

ROOM = 24  # times the state: keeps the first saves of those that remove nothing
MORE_S = 2.0  # training goes on for so long with a full disk


class FullDisk(Fault):
    title = "full disk"

    def missing(self) -> str:
        return needs_root("mkfs.ext4")

    def trials(self, engine: Engine, bench: Bench, seeds: range) -> Iterator[Result]:
        for seed in seeds:
            chance = chance_of(engine, self, seed)
            with (
                Disk("ext4", bench.folder, ROOM * bench.size_bytes) as disk,
                bench.trial(engine, folder=disk.mount / "state") as trial,
            ):
                trial.save()
                first_saves(trial, 2)
                left = int(chance.random() * bench.size_bytes)
                disk.fill(leave_bytes=left)
                told = trial.until(lambda told: bool(told.refused), within_s=MORE_S)
                time.sleep(chance.random() * 0.2)
                trial.kill_all()
                said = f"refused: {told.refused[0]}" if told.refused else "refused nothing"
                outcome = trial.load()
                trial.kill_all()
                yield result(trial, outcome, seed, f"{left} bytes left; {said}"[:200])
