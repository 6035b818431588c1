"""What to do about an end: one sentence a cause. Pure."""

from __future__ import annotations

from holdfast.errors import LeaseHeld
from holdfast.events import AttemptEnded, RunEnded

# exit class (`exits.ExitClass`) → what a person can do; classes that need nobody are not here
_TO_DO = {
    "code_error": "mend the exception above, in the run's snapshot of the code (holdfast shell {run}) or in a new run",
    "import_error": "install the missing module where `run:` finds it",
    "cannot_start": "check the command and the interpreter: `holdfast shell {run}` is where it starts",
    "cuda_oom": "lower the batch size, or accumulate gradients: a restart alone will not make room",
    "host_oom": "use fewer DataLoader workers or smaller batches, or give the run more memory",
    "cuda_error": "look at the GPU: `nvidia-smi -q -d ECC,ERRORS` and `dmesg` for Xid lines",
    "nccl_error": "look at the rank that died first, and at the network between the nodes",
    "hang": "read the stacks: every rank's last line of Python is in them",
    "disk_full": "free space, or keep fewer checkpoints (checkpoint.keep)",
    "bus_error": "enlarge /dev/shm, or use fewer DataLoader workers",
    "segfault": "read the faulthandler stacks above; a native extension crashed",
    "abort": "read the last lines of the output; native code aborted",
    "killed": "find who sent SIGKILL: a job limit, an administrator, an out-of-memory daemon",
    "segment_cut": "leave time to start, step and save: `segment`, `stop_grace_period`; holdfast run --from {run}",
    "no_checkpoint": "see what is damaged: holdfast ckpt verify {run}; put it back, or start a new run",
    "unknown": "read the last lines: holdfast logs {run} --tail 50",
}


def advice(run: str, ended: AttemptEnded | None, end: RunEnded | None, *, lost: bool = False) -> list[str]:
    """Things to do, the most telling first; empty while all is well. `lost`: nobody carries the run."""
    if lost:
        return [f"holdfast resume {run}"]
    if end is not None and end.state == "succeeded":
        return []
    if end is not None and end.state == "stopped" and end.exit_code == LeaseHeld.exit_code:
        return []  # another machine goes on, as the reason says
    told = []
    if ended is not None and ended.exit_class in _TO_DO:
        told.append(_TO_DO[ended.exit_class].format(run=run))
    if end is not None:
        told.append(f"holdfast resume {run}")
    return told
