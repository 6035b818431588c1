"""The vocabulary of the journal: one frozen record an event, versioned, replayable.

A journal line is the record's fields plus `v` (version of this vocabulary), `n` (line number from 0), `t` (unix
seconds) and `event` (the name below). Fields are JSON values. Readers ignore events and fields they do not know; a
field is never given another meaning, a new one gets a default.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_options: object) -> Any:
        """Only type checkers need it: in the standard library from Python 3.11 on."""
        return lambda decorator: decorator


VERSION = 1

_by_name: dict[str, type[Event]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all: `t` is the time in unix seconds at which it happened."""

    name: ClassVar[str] = ""
    t: float = 0.0


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def _event(name: str) -> Any:
    def register(cls: type[Event]) -> type[Event]:
        made = dataclass(frozen=True, slots=True, kw_only=True)(cls)
        made.name = name
        _by_name[name] = made
        return made

    return register


@_event("run_created")
class RunCreated(Event):
    """`holdfast run` made the directory; `plan` is the digest of plan.json."""

    run: str
    plan: str = ""


@_event("supervisor_started")
class SupervisorStarted(Event):
    """A supervisor took over; `adopted` when a trainer was alive already."""

    pid: int
    adopted: bool = False
    boot: str = ""  # /proc/sys/kernel/random/boot_id: another one means the machine was restarted


@_event("process_restarted")
class ProcessRestarted(Event):
    """One of ours died and was brought back; `role` is shim, supervisor or archiver."""

    role: str
    pid: int
    cause: str = ""


@_event("setup_started")
class SetupStarted(Event):
    """`setup:` runs; once a run, again only when it failed."""

    pid: int = 0


@_event("setup_ended")
class SetupEnded(Event):
    """`setup:` ended; 0 is the only status that goes on to the first attempt."""

    status: int


@_event("devices_awaited")
class DevicesAwaited(Event):
    """No attempt can begin before the run has its devices; again whenever what it waits for has changed."""

    wants: str  # as in the run file
    ahead: int  # runs before it that wait too
    why: str  # who has the devices it could use, or why nobody can tell


@_event("devices_taken")
class DevicesTaken(Event):
    """These devices of the machine are the run's until it is over, or the machine is restarted."""

    devices: list[str]  # uuids
    names: list[str] = field(default_factory=list)  # as people know them: "0 NVIDIA A100"


@_event("attempt_started")
class AttemptStarted(Event):
    """The trainer was started."""

    attempt: int
    pid: int
    start_ticks: int
    log_offset: int  # where in output.log this attempt begins, in bytes
    resume_step: int = 0  # step of the newest checkpoint at that moment, 0 for none


@_event("restored")
class Restored(Event):
    """The library loaded a checkpoint, or began from nothing (`step` 0, `manifest` empty)."""

    attempt: int
    step: int
    term: int
    manifest: str = ""
    fell_back: list[str] = field(default_factory=list)  # what was wrong with newer ones, a sentence each
    seconds: float = 0.0
    tier: str = ""  # memory | disk | mirror; empty for a start from nothing


@_event("checkpoint_committed")
class CheckpointCommitted(Event):
    """A manifest is durable."""

    step: int
    term: int
    sequence: int
    size_bytes: int
    reason: str
    seconds: float = 0.0  # from sealed to durable
    manifest: str = ""


@_event("checkpoint_failed")
class CheckpointFailed(Event):
    """A save did not commit; training goes on."""

    step: int
    reason: str
    message: str


@_event("finding_raised")
class FindingRaised(Event):
    """Something is wrong or worth knowing; stays in `status` until cleared. `id` is stable: `disk-full`, `hang`, …"""

    id: str
    severity: str  # info | warning | error
    message: str
    hint: str = ""


@_event("finding_cleared")
class FindingCleared(Event):
    """It is over."""

    id: str


@_event("hang_detected")
class HangDetected(Event):
    """No heartbeat for longer than allowed."""

    attempt: int
    silent_s: float
    allowed_s: float
    step: int
    phase: str = ""


@_event("stacks_captured")
class StacksCaptured(Event):
    """Stacks of every process of the attempt, in `path` below the run directory."""

    attempt: int
    path: str


@_event("exit_seen")
class ExitSeen(Event):
    """The trainer is gone. `status` is an exit code, minus a signal number, or null when nobody could see it."""

    attempt: int
    status: int | None
    number: int = 0  # the shim's exit record


@_event("attempt_ended")
class AttemptEnded(Event):
    """The exit, classified; `exit_class` is a name of `exits.ExitClass`."""

    attempt: int
    exit_class: str
    status: int | None
    step: int  # last completed step seen
    committed_step: int  # newest durable step
    evidence: list[str] = field(default_factory=list)  # the lines and numbers that decided it
    epoch: int = 0
    steps_total: int = 0  # 0 while unknown
    traceback: str = ""  # last one in the log, bounded
    orphans: int = 0  # processes of the attempt that had to be ended
    memory_step: int = 0  # newest step that every rank held a copy of in memory, 0 for none


@_event("restart_scheduled")
class RestartScheduled(Event):
    """Another attempt comes after `delay_s`."""

    attempt: int
    delay_s: float
    reason: str
    free: bool = False  # did not count against the budget


@_event("save_requested")
class SaveRequested(Event):
    """`holdfast save`, or a reaction."""

    number: int
    reason: str = ""


@_event("stop_requested")
class StopRequested(Event):
    """`how` is stop, kill, preempted (SIGTERM from outside), max-duration or superseded (another machine goes on)."""

    how: str
    grace_s: float = 0.0


@_event("segment_over")
class SegmentOver(Event):
    """The attempt has run for `segment`: it is asked to save and leave, and the next one begins where it stopped."""

    attempt: int
    grace_s: float = 0.0


@_event("resume_requested")
class ResumeRequested(Event):
    """`holdfast resume`: budgets start anew; `want` as in the archiver's restore request."""

    want: Any = "newest"


@_event("run_ended")
class RunEnded(Event):
    """`state` is succeeded, failed or stopped; `exit_code` is what `wait` returns."""

    state: str
    exit_code: int
    reason: str
    to_be_continued: bool = False


@_event("tracker_seen")
class TrackerSeen(Event):
    """An experiment tracker made an id of its own; later attempts get it in `variable`, so its history goes on."""

    attempt: int
    variable: str
    value: str


@_event("interval_chosen")
class IntervalChosen(Event):
    """`auto` saves this often from now on; the terms are those of `goodput.Interval`. Seconds."""

    tier: str  # memory | disk | mirror
    seconds: float
    best_s: float  # by the formula alone
    bound: str  # what makes it longer: overhead | write | floor, or empty
    blocked_s: float  # T_s
    write_s: float
    failure_s: float  # T_f
    restart_s: float  # T_r
    failures: int
    trained_s: float
    max_overhead_ratio: float


@_event("callback_failed")
class CallbackFailed(Event):
    """A function given to `run.on` raised; nothing else was harmed."""

    attempt: int
    callback: str
    message: str


def to_json(event: Event, *, number: int) -> dict[str, Any]:
    """The journal line of `event`, as a dict."""
    return {"v": VERSION, "n": number, "event": event.name, **dataclasses.asdict(event)}


def from_json(line: dict[str, Any]) -> Event | None:
    """The event of a journal line; None for one this version does not know. Raises TypeError on a missing field."""
    kind = _by_name.get(str(line.get("event")))
    if kind is None:
        return None
    names = {f.name for f in dataclasses.fields(kind)}
    return kind(**{key: value for key, value in line.items() if key in names})
