"""What is known of a run: all that its journal says, in bounded size, and what its plan says of its life.

Pure: records, and what can be read off them. `lifecycle` makes each state from the one before and an event, and
nobody else does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from holdfast import events as ev
from holdfast.goodput import Failures
from holdfast.plan import Plan, RestartPlan


class RunState(str, Enum):
    """What `status` calls it; `saving` and `lost` are views made there."""

    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


OVER = (RunState.STOPPED, RunState.SUCCEEDED, RunState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the plan says about the life of the run."""

    restart: RestartPlan = field(default_factory=RestartPlan)
    setup: bool = False
    stop_grace_s: float = 60.0
    segment_s: float | None = None
    yields: bool = False  # stop when another machine has gone on

    @classmethod
    def of(cls, plan: Plan) -> Policy:
        """The policy of a plan."""
        return cls(
            restart=plan.restart, setup=bool(plan.setup), stop_grace_s=plan.stop_grace_s, segment_s=plan.segment_s,
            yields=plan.yields,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Restarts so far; `resume` opens a new one."""

    restarts: int = 0
    streak: int = 0  # ended attempts since the last progress
    no_progress: int = 0
    window: tuple[float, ...] = ()  # times of counted restarts since the last progress, unix seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything the journal says about a run, in bounded size."""

    phase: RunState = RunState.QUEUED
    attempt: int = 0  # newest one that was started
    started: ev.AttemptStarted | None = None  # the attempt that runs, or whose end is not classified yet
    exit: ev.ExitSeen | None = None  # seen, not classified
    ended: ev.AttemptEnded | None = None  # classified, not decided
    scheduled: ev.RestartScheduled | None = None
    stop: ev.StopRequested | None = None
    hang: ev.HangDetected | None = None  # of the running attempt
    segment: ev.SegmentOver | None = None  # the same
    result: ev.RunEnded | None = None
    devices: tuple[str, ...] = ()  # uuids of those it has
    awaited: ev.DevicesAwaited | None = None  # what is told of the line in which it stands
    awaited_s: float = 0.0  # since when it stands there
    queued_s: float = 0.0  # how long it has stood there since `since_s`: `max_duration` does not count that
    want: Any = "newest"  # what the next attempt restores
    ledger: Ledger = field(default_factory=Ledger)
    library: bool = False  # some attempt restored, so progress is known
    base_step: int = 0  # step the running attempt began from
    progressed: bool = False  # since it began
    reached: int = 0  # newest step that was ever saved, in memory or on disk, since the last resume
    settled: bool = False  # any attempt ever progressed
    committed: ev.CheckpointCommitted | None = None
    findings: tuple[ev.FindingRaised, ...] = ()
    save_number: int = 0
    restarts: int = 0  # in all, free ones and those before a resume included, segments apart
    segments: int = 0  # ends of segments that another attempt followed
    setup_done: bool = False
    run: str = ""
    boot: str = ""
    created_s: float = 0.0
    since_s: float = 0.0  # created or last resumed: `max_duration` and its place in the queue count from here
    updated_s: float = 0.0
    history: tuple[ev.AttemptEnded, ...] = ()
    starts: tuple[ev.AttemptStarted, ...] = ()
    restored: ev.Restored | None = None
    seen: Failures = field(default_factory=Failures)  # in all attempts that ended
    intervals: tuple[ev.IntervalChosen, ...] = ()  # the newest of each tier
    trackers: tuple[tuple[str, str], ...] = ()  # environment variables that continue a tracker's history

    @property
    def next_attempt(self) -> int:
        """Number of the attempt after the newest."""
        return self.attempt + 1

    @property
    def committed_step(self) -> int:
        """Newest durable step."""
        return self.committed.step if self.committed else 0
