"""The processes of a trial: one that saves, one that loads, and everything they have started.

All of them carry BENCH_TRIAL in their environment or belong to the session of one that does, so that nothing of a trial
outlives it. Modules that an engine needs are imported once, in a process from which the others are forked.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from bench import engines, job
from bench.engines import Engine, Loaded
from bench.job import Job, Told, Weights
from bench.judge import Outcome, merge
from bench.timing import Pace, TimedJob

MARK = "BENCH_TRIAL"
LOAD_S = 90  # after which loading counts as hung
POLL_S = 0.002


class Trial:
    """A folder for the engine, a diary, and the processes; `end` leaves none of them."""

    def __init__(
        self, engine: Engine, folder: Path, *, size_bytes: int, world: int = 1, pace: Pace | None = None
    ) -> None:
        self.engine, self.size_bytes, self.world, self.pace = engine, size_bytes, world, pace
        self.folder = folder
        self.aside = Path(tempfile.mkdtemp(prefix="trial-"))
        self.diary = self.aside / "diary"
        self.mark = f"{os.getpid()}-{self.aside.name}"
        self.savers: list[BaseProcess] = []
        way = "forkserver" if engine.preload else "spawn"
        self._context = multiprocessing.get_context(way)

    def save(self, *, last: int = 0) -> None:
        """Start training: one process, or one a rank."""
        port = _free_port() if self.world > 1 else 0
        for rank in range(self.world):
            setting = _Setting(self, rank, port, "save")
            self.savers.append(self._start(_save, setting, self._diary(rank), self.size_bytes, last, self.pace))

    def load(self, *, live: bool = False) -> Outcome:
        """Load as the engine does; `live`: while training goes on."""
        world = self.world if not self.engine.reshards else 1
        port = _free_port() if world > 1 else 0
        asked = []
        for rank in range(world):
            ours, theirs = multiprocessing.Pipe(duplex=False)
            setting = _Setting(self, rank, port, "load", world=world)
            asked.append((ours, self._start(_load, setting, theirs, self.size_bytes, live)))
            theirs.close()
        return merge([_answer(*each) for each in asked])

    def told(self) -> Told:
        """What all ranks have told: a step is saved when every rank says so."""
        every = [job.read(self._diary(rank)) for rank in range(self.world)]
        for other in every[1:]:
            every[0].saved = [step for step in every[0].saved if step in other.saved]
            every[0].begun += other.begun
            every[0].refused += other.refused
        return every[0]

    def until(self, condition: Callable[[Told], bool], *, within_s: float) -> Told:
        """Wait for the diary to say so, or for training to end, or for the time to be over."""
        deadline_s = time.monotonic() + within_s
        while not condition(told := self.told()) and time.monotonic() < deadline_s:
            if not any(saver.is_alive() for saver in self.savers):
                return self.told()
            time.sleep(POLL_S)
        return told

    def kill_training(self, ranks: tuple[int, ...] = (0,)) -> None:
        """SIGKILL to the training processes alone; what they started goes on."""
        for rank in ranks:
            self.savers[rank].kill()
            self.savers[rank].join()

    def kill_all(self) -> None:
        """SIGKILL to everything of this trial, first stopped so that none sees another die."""
        while pids := self._alive():
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
            for saver in self.savers:
                saver.join(timeout=5)
            _gone(pids)

    def settle(self, *, within_s: float) -> None:
        """Wait until everything of this trial has left by itself; kill what has not."""
        deadline_s = time.monotonic() + within_s
        while self._alive() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        self.kill_all()

    def end(self) -> None:
        """Nothing is left of it but the engine's folder."""
        self.kill_all()
        self.engine.forget(self.folder)
        shutil.rmtree(self.aside, ignore_errors=True)

    def pids(self) -> list[int]:
        """Of everything that lives of this trial."""
        return self._alive()

    def said(self) -> str:
        """The end of what training and loading wrote to stderr."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self.aside.glob("*.err")))

    def _diary(self, rank: int) -> Path:
        return self.diary.with_suffix(f".{rank}")

    def _start(self, function: Callable[..., None], *arguments: object) -> BaseProcess:
        self._context.set_forkserver_preload([*self.engine.preload, "bench.trials"])
        process = self._context.Process(target=function, args=arguments)  # type: ignore[attr-defined]
        process.start()
        return process

    def _alive(self) -> list[int]:
        found = []
        sessions = set()
        entries = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        for pid in entries:
            with suppress(OSError):
                if self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    sessions.add(os.getsid(pid))
                    found.append(pid)
        sessions |= {saver.pid for saver in self.savers if saver.pid} | _sessions(self.aside)
        for pid in entries:
            with suppress(OSError):
                if pid not in found and os.getsid(pid) in sessions:
                    found.append(pid)
        mine = os.getpid()
        return [pid for pid in found if pid != mine and _state(pid) not in "ZX"]


def _sessions(aside: Path) -> set[int]:
    return {int(path.suffix[1:]) for path in aside.glob("session.*")}


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _gone(pids: list[int]) -> None:
    deadline_s = time.monotonic() + 10
    while any(_state(pid) not in "ZX" for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.002)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class _Setting:
    """What a process of a trial is told; it travels by pickle."""

    def __init__(self, trial: Trial, rank: int, port: int, role: str, *, world: int | None = None) -> None:
        self.engine, self.folder, self.aside, self.mark = trial.engine.name, trial.folder, trial.aside, trial.mark
        self.rank, self.world, self.port, self.role = rank, world or trial.world, port, role

    def enter(self) -> Engine:
        """Make this process the one it is to be."""
        os.setsid()
        (self.aside / f"session.{os.getpid()}").touch()
        os.environ[MARK] = self.mark
        os.environ["OMP_NUM_THREADS"] = "1"
        descriptor = os.open(self.aside / f"{self.role}-{self.rank}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        faulthandler.enable()
        torch.set_num_threads(1)
        if self.world > 1:
            self._join()
        return engines.named(self.engine)

    def _join(self) -> None:
        words = {"RANK": self.rank, "LOCAL_RANK": self.rank, "WORLD_SIZE": self.world, "MASTER_PORT": self.port}
        os.environ.update({name: str(value) for name, value in words.items()}, MASTER_ADDR="127.0.0.1")
        import torch.distributed as dist

        dist.init_process_group("gloo")


def _save(setting: _Setting, diary: Path, size_bytes: int, last: int, pace: Pace | None) -> None:
    engine = setting.enter()
    rank, world = setting.rank, setting.world
    work = Job(diary, size_bytes=size_bytes, last=last, rank=rank, world=world, sharded=engine.reshards)
    if pace is not None:
        work = TimedJob(diary, size_bytes=size_bytes, last=last, pace=pace)
    try:
        engine.train(setting.folder, work)
    except Exception as error:
        traceback.print_exc()
        work.refused(work.step, f"{type(error).__name__}: {error}")
    else:
        work.done()


def _load(setting: _Setting, answer: Connection, size_bytes: int, live: bool) -> None:
    engine = setting.enter()
    weights = Weights(size_bytes, rank=0 if engine.reshards else setting.rank)
    weights.clear()  # its pages are there before time is taken
    began_s = time.monotonic()
    try:
        loaded: Loaded = (engine.reload if live else engine.load)(setting.folder, weights)
        seconds = time.monotonic() - began_s
    except BaseException as error:
        traceback.print_exc()
        answer.send(Outcome(error=f"{type(error).__name__}: {error}"[:400]))
    else:
        found = weights.found() if loaded.step else {}
        answer.send(Outcome(claimed=loaded.step, found=found, said=loaded.said, seconds=seconds))
    os.kill(os.getpid(), signal.SIGKILL)  # nothing at exit may hang or write


def _answer(asked: Connection, process: BaseProcess) -> Outcome:
    try:
        if not asked.poll(LOAD_S):
            return Outcome(error=f"loading hung for {LOAD_S} s")
        outcome: Outcome = asked.recv()
        return outcome
    except EOFError:
        process.join(5)
        return Outcome(error=f"loading died with exit status {process.exitcode}")
    finally:
        process.kill()
        process.join()
