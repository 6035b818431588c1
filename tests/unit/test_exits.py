"""Exits as they look in real logs."""

from __future__ import annotations

import signal

import pytest

from holdfast.events import AttemptEnded
from holdfast.exits import Exit, ExitClass, classify, describe

GLOO_CASCADE = """Traceback (most recent call last):
  File "train.py", line 13, in <module>
    loss.backward()
RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:54479. A remote worker may be gone.
"""
NCCL_CASCADE = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "/job/train.py", line 88, in <module>
[rank1]:     loss = model(batch)
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.1 GiB
[rank0]:[E ProcessGroupNCCL.cpp:616] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(OpType=ALLREDUCE)
[rank0]: Traceback (most recent call last):
[rank0]:   File "/job/train.py", line 91, in <module>
[rank0]:     dist.all_reduce(loss)
[rank0]: torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1275, remote process exited
"""
CHILD_FAILED = """\
Traceback (most recent call last):
  File "train.py", line 3, in <module>
    batch["labels"]
KeyError: 'labels'
Traceback (most recent call last):
  File "/env/bin/torchrun", line 8, in <module>
    sys.exit(main())
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
"""
RAISED = 'Traceback (most recent call last):\n  File "t.py", line 1, in <module>\n    go()\n'
SYNTAX = '  File "train.py", line 4\n    for x in\n            ^\nSyntaxError: invalid syntax\n'
USAGE = "usage: train.py [-h] --epochs N\ntrain.py: error: the following arguments are required: --epochs\n"
WORKER = RAISED + "RuntimeError: DataLoader worker (pid 3144) is killed by signal: Killed. \n"
SHM = "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).\n"

CASES = [
    (Exit(status=0), ExitClass.SUCCEEDED),
    (Exit(status=0, outcome="finished", asked="stop"), ExitClass.SUCCEEDED),
    (Exit(status=0, asked="stop"), ExitClass.USER_STOP),
    (Exit(status=75, asked="stop", outcome="stopped"), ExitClass.STOPPED),
    (Exit(status=75), ExitClass.STOPPED),
    (Exit(status=1, tail=RAISED + "holdfast.errors.NoValidCheckpoint: 2 tried\n"), ExitClass.NO_CHECKPOINT),
    (Exit(status=-9), ExitClass.KILLED),
    (Exit(status=-9, tail="OSError: [Errno 28] No space left on device\n"), ExitClass.KILLED),
    (Exit(status=-9, oom_kills=1, oom_scope="this machine"), ExitClass.HOST_OOM),
    (Exit(status=137, oom_kills=1, oom_scope="this cgroup"), ExitClass.HOST_OOM),
    (Exit(status=-9, asked="kill"), ExitClass.USER_STOP),
    (Exit(status=-9, asked="hang"), ExitClass.HANG),
    (Exit(status=75, asked="segment"), ExitClass.SEGMENT_END),
    (Exit(status=1, asked="segment", outcome="stopped", tail=CHILD_FAILED), ExitClass.SEGMENT_END),
    (Exit(status=0, asked="segment", outcome="finished"), ExitClass.SUCCEEDED),
    (Exit(status=0, asked="segment"), ExitClass.SEGMENT_CUT),
    (Exit(status=-9, asked="segment"), ExitClass.SEGMENT_CUT),
    (Exit(status=143, asked="segment"), ExitClass.SEGMENT_CUT),
    (Exit(status=None, asked="segment", rebooted=True), ExitClass.LOST),
    (Exit(status=-9, asked="segment", oom_kills=1, oom_scope="this cgroup"), ExitClass.HOST_OOM),
    (Exit(status=-11, asked="segment"), ExitClass.SEGFAULT),
    (Exit(status=1, asked="segment", outcome="raised", tail=RAISED + "KeyError: 1\n"), ExitClass.CODE_ERROR),
    (Exit(status=-15), ExitClass.PREEMPTED),
    (Exit(status=143), ExitClass.PREEMPTED),
    (Exit(status=-15, asked="stop"), ExitClass.USER_STOP),
    (Exit(status=-11), ExitClass.SEGFAULT),
    (Exit(status=-7), ExitClass.BUS_ERROR),
    (Exit(status=-6), ExitClass.ABORT),
    (Exit(status=-6, tail="what():  CUDA error: device-side assert triggered\n"), ExitClass.CUDA_ERROR),
    (Exit(status=1, tail=NCCL_CASCADE), ExitClass.CUDA_OOM),
    (Exit(status=1, tail=NCCL_CASCADE[NCCL_CASCADE.index("[rank0]") :]), ExitClass.NCCL_ERROR),
    (Exit(status=1, tail=GLOO_CASCADE), ExitClass.NCCL_ERROR),
    (Exit(status=1, tail=CHILD_FAILED), ExitClass.CODE_ERROR),
    (Exit(status=1, tail=SYNTAX), ExitClass.CODE_ERROR),
    (Exit(status=1, tail=RAISED + "ModuleNotFoundError: No module named 'timm'\n"), ExitClass.IMPORT_ERROR),
    (Exit(status=1, tail=RAISED + "OSError: [Errno 28] No space left on device: 'out.pt'\n"), ExitClass.DISK_FULL),
    (Exit(status=1, tail=RAISED + "MemoryError\n"), ExitClass.HOST_OOM),
    (Exit(status=1, tail=RAISED + "ConnectionError: the hub did not answer\n"), ExitClass.UNKNOWN),
    (Exit(status=1, tail=RAISED + "my.errors.DataGone: shard 3\n"), ExitClass.CODE_ERROR),
    (Exit(status=1, tail=WORKER), ExitClass.KILLED),
    (Exit(status=1, tail=WORKER, oom_kills=2, oom_scope="this machine"), ExitClass.HOST_OOM),
    (Exit(status=1, tail=SHM), ExitClass.BUS_ERROR),
    (Exit(status=2, tail=USAGE), ExitClass.CANNOT_START),
    (Exit(status=2, tail="python: can't open file '/job/trian.py': [Errno 2]\n"), ExitClass.CANNOT_START),
    (Exit(status=2, tail=USAGE, progressed=True), ExitClass.UNKNOWN),
    (Exit(status=127, tail="sh: 1: pyhton: not found\n"), ExitClass.CANNOT_START),
    (Exit(status=127, exec_error="[Errno 2] No such file or directory: 'pyhton'"), ExitClass.CANNOT_START),
    (Exit(status=1), ExitClass.UNKNOWN),
    (Exit(status=None), ExitClass.UNKNOWN),
    (Exit(status=None, rebooted=True), ExitClass.LOST),
]


@pytest.mark.parametrize(("end", "expected"), CASES, ids=lambda value: getattr(value, "value", None))
def test_class(end: Exit, expected: ExitClass) -> None:
    assert classify(end).exit_class == expected


def test_the_root_of_a_cascade_is_the_traceback_shown() -> None:
    verdict = classify(Exit(status=1, tail=NCCL_CASCADE))

    assert "OutOfMemoryError" in verdict.traceback
    assert "NCCL" not in verdict.traceback
    assert any("Tried to allocate 2.00 GiB" in line for line in verdict.evidence)


def test_a_message_of_several_lines_is_shown_as_far_as_it_is_indented_and_decides_nothing() -> None:
    message = "StateMismatch: model is not the module that was stored: 1 of another shape"
    below = "  of another shape:\n    MemoryError float32 (2,)\nhint: restore it"

    verdict = classify(Exit(status=1, tail=f"{RAISED}{message}\n{below}\nbye\n  bye\n"))

    assert (verdict.exit_class, verdict.evidence[0]) == (ExitClass.CODE_ERROR, message)
    assert verdict.traceback == f"{RAISED}{message}\n{below}"


def test_a_message_without_end_is_cut() -> None:
    endless = f"\t{'x' * 10_000}\n" * 1000

    verdict = classify(Exit(status=1, tail=f"{RAISED}RuntimeError: no\n{endless}"))

    assert verdict.exit_class == ExitClass.CODE_ERROR
    assert len(verdict.traceback) < 20_000


def test_a_warning_in_the_output_does_not_hide_the_exception() -> None:
    tail = "UserWarning: CUDNN_STATUS_NOT_SUPPORTED, trying another plan\n" + RAISED + "ValueError: odd shape\n"

    verdict = classify(Exit(status=1, tail=tail))

    assert verdict.exit_class == ExitClass.CODE_ERROR
    assert verdict.evidence[0] == "ValueError: odd shape"


def test_evidence_ends_with_the_status_in_words() -> None:
    assert classify(Exit(status=-int(signal.SIGKILL))).evidence == ("ended by SIGKILL",)


def test_describe_says_what_is_lost() -> None:
    ended = AttemptEnded(attempt=2, exit_class="cuda_oom", status=1, step=120, committed_step=100, orphans=3)

    text = describe(ended)

    assert text.splitlines() == [
        "attempt 2 ended at step 120: the GPU ran out of memory",
        "  newest checkpoint then: step 100",
        "  3 leftover processes of it were ended",
    ]
