"""Power loss, for real: an ext4 that is shut down under a training that saves, then mounted again.

Seeds alternate between ext4 as it comes and `data=writeback,noauto_da_alloc`, and between a journal that was written
out at the last moment and one that was not. After the first save everything is written back once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from bench.disks import Disk, needs_root
from bench.engines import Engine
from bench.faults import Bench, Fault, Result, chance_of, first_saves, result
from bench.faults.kill import random_moment

OPTIONS = ("defaults", "data=writeback,noauto_da_alloc")
ROOM = 14  # times the state


class PowerExt4(Fault):
    title = "power loss (ext4)"
    system = "ext4"
    options = OPTIONS

    def missing(self) -> str:
        return needs_root(f"mkfs.{self.system}")

    def trials(self, engine: Engine, bench: Bench, seeds: range) -> Iterator[Result]:
        for seed in seeds:
            chance = chance_of(engine, self, seed)
            options, log = self.options[seed % len(self.options)], bool(seed // len(self.options) % 2)
            with (
                Disk(self.system, bench.folder, ROOM * bench.size_bytes, options=options) as disk,
                bench.trial(engine, folder=disk.mount / "state") as trial,
            ):
                trial.save()
                first_saves(trial, 1)
                subprocess.run(["sync", "-f", disk.mount], check=True)
                saves = len(trial.told().saved) + 2
                delay_s = random_moment(trial, chance, saves=saves)
                disk.power_off(write_log=log)
                told = trial.told()  # what is said after the power went was never said
                trial.kill_all()
                engine.forget(trial.folder)
                disk.power_on()
                outcome = trial.load()
                trial.kill_all()
                journal = f"{options}, journal {'written' if log else 'not written'}"
                what = f"{journal}, {delay_s * 1000:.1f} ms after save {saves}"
                yield result(trial, outcome, seed, what, told=told)
