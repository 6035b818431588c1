"""Why an attempt ended: exit status, last output and what the kernel counted → one class, with the evidence.

Pure. The order of the questions matters: what we asked for first, then what the program says it died of, then what
the signal number allows. NCCL errors come last among the texts: when one rank dies the others report its silence, so
an NCCL line is a consequence wherever anything else explains the end.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from enum import Enum
from itertools import islice, takewhile

from holdfast.errors import STOPPED_WITH_CHECKPOINT
from holdfast.events import AttemptEnded

TRACEBACK_BYTES = 8000
MOST_LINES, LINE_CHARS = 60, 200  # of what stands below it
USAGE_STATUS = 2  # argparse, and the interpreter when it cannot open the script
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # sh(1)


class ExitClass(str, Enum):
    """Names used in rules, in the journal and in `explain`."""

    SUCCEEDED = "succeeded"
    STOPPED = "stopped"  # left with 75 after its checkpoint was durable
    USER_STOP = "user_stop"  # we were asked to end it, and it did not save
    SEGMENT_END = "segment_end"  # its segment was over; it saved and left
    SEGMENT_CUT = "segment_cut"  # its segment was over, and it did not save
    KILLED = "killed"  # SIGKILL from outside
    HOST_OOM = "host_oom"
    CUDA_OOM = "cuda_oom"
    CUDA_ERROR = "cuda_error"
    NCCL_ERROR = "nccl_error"  # or gloo: what the other ranks say when one died
    HANG = "hang"
    PREEMPTED = "preempted"  # SIGTERM that we did not send
    CODE_ERROR = "code_error"
    IMPORT_ERROR = "import_error"
    DISK_FULL = "disk_full"
    SEGFAULT = "segfault"
    BUS_ERROR = "bus_error"
    ABORT = "abort"
    CANNOT_START = "cannot_start"
    LOST = "lost"  # the machine was restarted under it
    NO_CHECKPOINT = "no_checkpoint"  # checkpoints exist, and none is intact
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """Everything known about one end. `status` as in `events.ExitSeen`."""

    status: int | None
    tail: str = ""  # the end of this attempt's output
    asked: str = ""  # why we ended it: stop, kill, preempted, max-duration, segment, superseded or hang; else empty
    outcome: str = ""  # as the library saw it: finished, stopped, raised; empty when it said nothing
    progressed: bool = False  # a step was completed
    oom_kills: int = 0  # by how much the kernel's count rose during the attempt
    oom_scope: str = ""  # whose count: "this cgroup" or "this machine"
    exec_error: str = ""  # the program could not be started at all
    rebooted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The class, the lines that decided it, and the last traceback of the output, its message in full (bounded)."""

    exit_class: ExitClass
    evidence: tuple[str, ...] = ()
    traceback: str = ""


# Text in the output → class, first match wins; a pattern must not match a mere warning or a library's name.
_TEXTS: tuple[tuple[ExitClass, str], ...] = (
    (ExitClass.CUDA_OOM, r"CUDA out of memory|OutOfMemoryError: (?:CUDA|HIP)|CUBLAS_STATUS_ALLOC_FAILED"),
    (
        ExitClass.CUDA_ERROR,
        (
            r"CUDA error: |an illegal memory access was encountered|device-side assert|uncorrectable ECC|"
            r"fallen off the bus|CUDA driver error|CUDNN_STATUS_(?!NOT_SUPPORTED)\w+|unspecified launch failure"
        ),
    ),
    (ExitClass.DISK_FULL, r"No space left on device|Errno 28\b|Disk quota exceeded|Errno 122\b"),
    (ExitClass.BUS_ERROR, r"insufficient shared memory \(shm\)|Bus error"),
    (ExitClass.HOST_OOM, r"^(?:\w+\.)*MemoryError\b|Cannot allocate memory|DefaultCPUAllocator: (?:can't|not enough)"),
    (ExitClass.IMPORT_ERROR, r"^(?:ModuleNotFoundError|ImportError)\b"),
)
_NCCL = re.compile(
    r"ncclUnhandledCudaError|ncclSystemError|ncclRemoteError|NCCL error|NCCL WARN .*failed|"
    r"Gloo connectFullMesh failed|gloo/transport.*(?:closed by peer|reset by peer|[Tt]imed out)|DistNetworkError|"
    r"Watchdog caught collective operation timeout|ProcessGroupNCCL.*(?:timed? ?out|aborted)|DistBackendError",
    re.MULTILINE,
)
_KILLED_WORKER = re.compile(r"(?:DataLoader worker|worker) .*killed by signal: Killed")
_USAGE = re.compile(
    r"^usage: |can't open file |: command not found|: not found$|No such file or directory", re.MULTILINE
)
_RANK = re.compile(r"^\[?(?:rank\d+|default\d+)\]?:[ ]?", re.MULTILINE)
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit)|[A-Z]\w+)(?::|$)")
_STARTS = "Traceback (most recent call last):"
_PASSING = {"ConnectionError", "ConnectionResetError", "TimeoutError", "BrokenPipeError", "ConnectionRefusedError"}

_SIGNALS = {
    signal.SIGSEGV: ExitClass.SEGFAULT,
    signal.SIGBUS: ExitClass.BUS_ERROR,
    signal.SIGABRT: ExitClass.ABORT,
    signal.SIGKILL: ExitClass.KILLED,
    signal.SIGTERM: ExitClass.PREEMPTED,
    signal.SIGINT: ExitClass.PREEMPTED,
    signal.SIGHUP: ExitClass.PREEMPTED,
    signal.SIGILL: ExitClass.ABORT,
    signal.SIGFPE: ExitClass.ABORT,
    signal.SIGSYS: ExitClass.ABORT,
}


_CRASHES = (ExitClass.SEGFAULT, ExitClass.BUS_ERROR, ExitClass.ABORT)


def classify(end: Exit) -> Verdict:
    """The class of one end. Never raises: what nothing explains is `unknown`."""
    tail = _RANK.sub("", end.tail)
    tracebacks = _tracebacks(tail)
    traceback = _root(tracebacks)
    asked = _segment(end) if end.asked == "segment" else _asked(end)
    found = asked or _plain(end) or _by_text(end, tail, traceback) or _by_signal(end)
    exit_class, evidence = found or (ExitClass.UNKNOWN, _last_lines(tail))
    failed = traceback and exit_class != ExitClass.SEGMENT_END  # a launcher takes a planned end for a failure
    shown = "\n".join([traceback, *_below(traceback, tail)]) if failed else ""
    return Verdict(exit_class=exit_class, evidence=(*evidence, status_words(end.status)), traceback=shown)


_Found = tuple[ExitClass, tuple[str, ...]]


def _asked(end: Exit) -> _Found | None:
    if end.asked == "hang":
        return ExitClass.HANG, ("no heartbeat for longer than allowed; ended by holdfast",)
    if end.status == STOPPED_WITH_CHECKPOINT:
        return ExitClass.STOPPED, ("saved and left as agreed",)
    finished = end.status == 0 and (end.outcome == "finished" or not end.asked)
    if finished:
        return ExitClass.SUCCEEDED, ()
    if end.asked:
        return ExitClass.USER_STOP, (f"ended by holdfast: {end.asked}",)
    return None


def _segment(end: Exit) -> _Found | None:
    """As agreed, too late, or None: it failed of itself while it should save.

    A launcher has an exit status of its own: there the ranks' pages say that they saved and left.
    """
    if end.status == STOPPED_WITH_CHECKPOINT or end.outcome == "stopped":
        return ExitClass.SEGMENT_END, ("saved and left as agreed",)
    if end.status == 0 and end.outcome == "finished":
        return ExitClass.SUCCEEDED, ()
    crashed = _by_signal(end) or (None, ())
    failed = end.outcome == "raised" or _plain(end) is not None or crashed[0] in _CRASHES
    return None if failed else (ExitClass.SEGMENT_CUT, ("ended by holdfast: its segment was over",))


def _plain(end: Exit) -> _Found | None:
    if end.exec_error:
        return ExitClass.CANNOT_START, (end.exec_error,)
    if end.rebooted:
        return ExitClass.LOST, ("the machine was restarted while the attempt ran",)
    if end.oom_kills and end.status is not None and end.status != 0:
        times = "time" if end.oom_kills == 1 else "times"
        killed = end.status in (-signal.SIGKILL, 128 + signal.SIGKILL) or _KILLED_WORKER.search(end.tail)
        if killed or end.oom_scope == "this cgroup":
            told = f"the kernel's out-of-memory killer struck {end.oom_kills} {times} in {end.oom_scope}"
            return ExitClass.HOST_OOM, (told,)
    return None


def _by_text(end: Exit, tail: str, traceback: str) -> _Found | None:
    if end.status == 0 or _from_outside(end.status):
        return None
    never_ran = not end.progressed and end.status in (NOT_EXECUTABLE, NOT_FOUND, USAGE_STATUS)
    if never_ran and (end.status != USAGE_STATUS or _USAGE.search(tail)) and not traceback:
        return ExitClass.CANNOT_START, _lines_with(_USAGE, tail) or _last_lines(tail)
    for text in (traceback, tail):
        for exit_class, pattern in _TEXTS:
            compiled = re.compile(pattern, re.MULTILINE)
            if compiled.search(text) and (text == traceback or exit_class in _FATAL_ANYWHERE):
                return exit_class, _lines_with(compiled, text)
    if _NCCL.search(traceback) or (not traceback and _NCCL.search(tail)):
        return ExitClass.NCCL_ERROR, _lines_with(_NCCL, tail)
    if _KILLED_WORKER.search(tail):
        return ExitClass.KILLED, _lines_with(_KILLED_WORKER, tail)
    return _by_exception(end, traceback)


def _from_outside(status: int | None) -> bool:
    """Whether somebody else's signal ended it: what stands in the output was survived."""
    outside = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return status is not None and status in {code for number in outside for code in (-number, 128 + number)}


# Found in the output without a traceback of their own: a native library aborts with them.
_FATAL_ANYWHERE = {ExitClass.CUDA_OOM, ExitClass.CUDA_ERROR, ExitClass.BUS_ERROR, ExitClass.DISK_FULL}


def _by_exception(end: Exit, traceback: str) -> _Found | None:
    if end.status is not None and end.status < 0:
        return None  # a signal ended it; an exception in the output was survived
    last = traceback.splitlines()[-1] if traceback else ""
    raised = _RAISED.match(last)
    if raised is None:
        return None
    if last.startswith("holdfast.errors.NoValidCheckpoint"):
        return ExitClass.NO_CHECKPOINT, (last[:500],)
    passing = raised[1] in _PASSING
    return (ExitClass.UNKNOWN if passing else ExitClass.CODE_ERROR), (last[:500],)


def _by_signal(end: Exit) -> _Found | None:
    if end.status is None:
        return None
    number = -end.status if end.status < 0 else end.status - 128
    known = {int(name): exit_class for name, exit_class in _SIGNALS.items()}
    return (known[number], ()) if number in known else None


def status_words(status: int | None) -> str:
    """An exit status as a person says it."""
    if status is None:
        return "exit status unknown: nobody was there to see it"
    if status >= 0:
        shell = f" (as a shell reports signal {status - 128})" if 128 < status < 160 else ""
        return f"exit status {status}{shell}"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"


def _tracebacks(text: str) -> list[str]:
    """Every traceback in `text`, oldest first, each up to and with the line that names the exception."""
    found = []
    for block in text.split(_STARTS)[1:]:
        lines = []
        for line in block.splitlines()[1:]:
            lines.append(line)
            if line and not line[0].isspace() and not line.startswith(("|", "+")):
                break
        found.append("\n".join([_STARTS, *lines]))
    syntax = re.search(r'^  File ".*\n(?:    .*\n)*(?:SyntaxError|IndentationError|TabError): .*', text, re.MULTILINE)
    if not found and syntax:  # the interpreter shows a script that does not parse without the heading
        found.append(syntax[0])
    return found


def _root(tracebacks: list[str]) -> str:
    """The one that explains the others: the last that is neither NCCL's nor the launcher's; cut to bounds."""
    told = [text for text in tracebacks if not _NCCL.search(text) and "ChildFailedError" not in text]
    chosen = (told or tracebacks or [""])[-1]
    return chosen[-TRACEBACK_BYTES:]


def _below(traceback: str, tail: str) -> list[str]:
    """Where the exception's message goes on: indented lines, and our hint; cut to bounds."""
    _, found, rest = tail.rpartition(traceback)
    goes_on = takewhile(lambda line: line[:1].isspace() or line.startswith("hint: "), rest.splitlines()[1:])
    return [line[:LINE_CHARS] for line in islice(goes_on, MOST_LINES)] if found else []


def _lines_with(pattern: re.Pattern[str], text: str) -> tuple[str, ...]:
    found = [line.strip()[:500] for line in text.splitlines() if pattern.search(line)]
    return tuple(found[:3])


def _last_lines(text: str) -> tuple[str, ...]:
    lines = [line.strip()[:500] for line in text.splitlines() if line.strip()]
    return tuple(lines[-3:])


_WORDS = {
    ExitClass.SUCCEEDED: "it finished",
    ExitClass.STOPPED: "it saved and left as agreed",
    ExitClass.USER_STOP: "it was ended on request",
    ExitClass.SEGMENT_END: "its segment was over: it saved and left, and goes on",
    ExitClass.SEGMENT_CUT: "its segment was over, and it was ended before it had saved",
    ExitClass.KILLED: "something outside killed it (SIGKILL), and the kernel did not run out of memory",
    ExitClass.HOST_OOM: "the machine ran out of memory",
    ExitClass.CUDA_OOM: "the GPU ran out of memory",
    ExitClass.CUDA_ERROR: "the GPU or its driver reported an error",
    ExitClass.NCCL_ERROR: "communication between ranks failed; no earlier cause is in the output",
    ExitClass.HANG: "training stood still",
    ExitClass.PREEMPTED: "something outside asked it to end",
    ExitClass.CODE_ERROR: "the program raised an exception",
    ExitClass.IMPORT_ERROR: "the program could not import a module",
    ExitClass.DISK_FULL: "a disk was full",
    ExitClass.SEGFAULT: "it crashed in native code (segmentation fault)",
    ExitClass.BUS_ERROR: "it crashed on memory that could not be had; often /dev/shm was full",
    ExitClass.ABORT: "it aborted itself in native code",
    ExitClass.CANNOT_START: "the program could not be started",
    ExitClass.LOST: "the machine was restarted",
    ExitClass.NO_CHECKPOINT: "none of the checkpoints is intact, and it does not begin anew by itself",
    ExitClass.UNKNOWN: "it left without saying why",
}


def describe(ended: AttemptEnded) -> str:
    """Plain words for `explain`: what happened, how far it had come, and the evidence, a line each."""
    why = _WORDS[ExitClass(ended.exit_class)] if ended.exit_class in set(ExitClass) else ended.exit_class
    lines = [f"attempt {ended.attempt} ended at step {ended.step}: {why}"]
    lines += [f"  {line}" for line in ended.evidence]
    if ended.committed_step < ended.step:
        memory = f"; in memory: step {ended.memory_step}" if ended.memory_step > ended.committed_step else ""
        lines.append(f"  newest checkpoint then: step {ended.committed_step}{memory}")
    if ended.orphans:
        lines.append(f"  {ended.orphans} leftover processes of it were ended")
    return "\n".join(lines)
