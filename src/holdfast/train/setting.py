"""Where a training process finds itself: its run, its rank, its attempt, and what the plan asks of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.utils.data

from holdfast.errors import RunFileError, UsageError
from holdfast.goodput import Failures
from holdfast.plan import Best, CheckpointPlan, Every, Memory, Plan, digest
from holdfast.process import identity
from holdfast.runs import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Fixed for the life of a process."""

    run: RunDir
    alone: bool  # no supervisor: shim and archiver are ours to start
    rank: int = 0
    world: int = 1
    threads: int = 1  # that may copy at a boundary: this machine's processors, shared out among its ranks
    attempt: int = 1
    claim: str = ""  # names this attempt to the archiver, the same in all its ranks
    want: Any = "newest"
    every: Every = field(default_factory=Every)
    keep_best: Best | None = None
    memory: Memory = field(default_factory=lambda: Memory(auto=False))
    max_overhead_ratio: float = 0.03
    seen: Failures = field(default_factory=Failures)
    timeout_s: float = 1800.0
    sync_always: bool = False
    check_snapshot: bool = False  # the debug mode of `train/check.py`


def find(directory: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> Setting:
    """The setting of this process; makes the run directory and its plan when alone.

    Raises UsageError inside a DataLoader worker, RunFileError for a plan that cannot be read.
    """
    _refuse_workers()
    supervised = environ.get("HOLDFAST_RUN_DIR")
    run = RunDir(Path(supervised or directory or Path("runs") / _script_name()).resolve())
    if not supervised and not run.plan.exists():
        _make_plan(run)
    plan = _read_plan(run)
    world = int(environ.get("WORLD_SIZE", "1"))
    return Setting(
        run=run,
        alone=not supervised,
        rank=int(environ.get("RANK", "0")),
        world=world,
        threads=len(os.sched_getaffinity(0)) // max(1, int(environ.get("LOCAL_WORLD_SIZE", "1"))),
        attempt=int(environ.get("HOLDFAST_ATTEMPT", "1")),
        claim=_claim(environ, world),
        want=json.loads(environ.get("HOLDFAST_WANT") or '"newest"'),
        every=plan.checkpoint.every,
        keep_best=plan.checkpoint.keep.best,
        memory=plan.checkpoint.memory,
        max_overhead_ratio=plan.checkpoint.max_overhead_ratio,
        seen=Failures.from_json(json.loads(environ.get("HOLDFAST_RATES") or "{}")),
        timeout_s=plan.checkpoint.timeout_s,
        sync_always=plan.logs.sync == "always",
        check_snapshot=environ.get("HOLDFAST_CHECK_SNAPSHOT", "") not in ("", "0"),
    )


def _refuse_workers() -> None:
    process = multiprocessing.current_process()
    starting = bool(getattr(process, "_inheriting", False))  # a spawned child that is importing the script
    if starting or torch.utils.data.get_worker_info() is not None:
        raise UsageError(
            f"Run was made in process {os.getpid()}, a worker of process {os.getppid()}",
            hint='make it under `if __name__ == "__main__":`',
        )


def _script_name() -> str:
    main = sys.argv[0] if sys.argv else ""
    return Path(main).stem or "interactive"


def _claim(environ: Mapping[str, str], world: int) -> str:
    """One process is a claim of its own; ranks share what their launcher tells all of them."""
    attempt = environ.get("HOLDFAST_ATTEMPT", "")
    if world > 1:
        told = [environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT")]
        return "/".join([attempt, *told])
    me = identity(os.getpid())
    return f"{attempt}/{os.getpid()}/{me.start_ticks if me else 0}/{time.time_ns()}"


def _make_plan(run: RunDir) -> None:
    try:
        run.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make {run.root}: {error.strerror}", hint="give Run(dir=…) a folder you own"
        ) from error
    plan = Plan(
        run=run.id,
        name=run.id,
        dir=str(run.root),
        argv=tuple(sys.argv),
        cwd=str(Path.cwd()),
        checkpoint=CheckpointPlan(dir=str(run.checkpoints), memory=Memory(auto=False)),  # its shim leaves with the rank
        created_s=time.time(),
        alone=True,
    )
    made = {**plan.to_json(), "digest": digest(plan.to_json())}
    draft = run.root / f".plan-{os.getpid()}"
    draft.write_text(json.dumps(made, indent=1))
    draft.chmod(0o600)
    try:
        os.link(draft, run.plan)  # the first rank wins, the others read what it wrote
    except FileExistsError:
        return
    finally:
        draft.unlink()


def _read_plan(run: RunDir) -> Plan:
    try:
        return Plan.from_json(json.loads(run.plan.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise RunFileError(f"{run.plan} cannot be read: {error}", hint="was the run made by this version?") from error
