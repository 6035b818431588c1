"""What will be done, with no look-ups left: spec + host facts → plan.

Pure. `plan.json` is `Plan.to_json`; the trainer side reads its `checkpoint` and `logs` tables with the standard
library alone. No secret is ever part of it, only their names.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """When to save: whichever comes first. All None with `auto` false: only on request and at the end."""

    auto: bool = True
    steps: int | None = None
    seconds: float | None = None
    epochs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """`checkpoint.keep.best`: keep the `count` best by a logged metric."""

    metric: str
    mode: str = "min"  # min | max
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """`checkpoint.keep`."""

    last: int = 3
    best: Best | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """`checkpoint`, resolved."""

    dir: str
    every: Every = field(default_factory=Every)
    max_overhead_ratio: float = 0.03
    timeout_s: float = 1800.0
    name: str = "{project}-{step:08d}"
    keep: Keep = field(default_factory=Keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartRule:
    """One row of `restart.rules`; the first that matches wins. Exactly one of the three conditions is set."""

    exit_class: str | None = None
    exit_codes: tuple[int, ...] = ()
    pattern: str | None = None  # a regular expression, searched in the last lines of the output
    action: str = "restart"  # restart | stop
    free: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPlan:
    """`restart`, resolved. Times in seconds."""

    policy: str = "on-failure"  # no | on-failure | always
    max_restarts: int = 20
    max_no_progress: int = 3
    backoff_initial_s: float = 1.0
    backoff_factor: float = 2.0
    backoff_max_s: float = 600.0
    window_restarts: int = 5
    window_s: float = 3600.0
    rules: tuple[RestartRule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogPlan:
    """`watchdog`, resolved. `progress_s` None: learned from the heartbeats."""

    startup_s: float = 1800.0
    progress_s: float | None = None
    action: str = "restart"  # restart | dump | notify


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsPlan:
    """`logs`, resolved."""

    sync: str = "everysec"  # always | everysec | no
    max_bytes: int = 1 << 30
    heartbeat_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything the node side needs to know of a run. Paths are absolute strings."""

    run: str  # the run id
    name: str
    dir: str
    argv: tuple[str, ...]
    cwd: str
    setup: tuple[str, ...] = ()  # argv, empty for none
    env: dict[str, str] = field(default_factory=dict)
    secret_names: tuple[str, ...] = ()
    checkpoint: CheckpointPlan
    restart: RestartPlan = field(default_factory=RestartPlan)
    watchdog: WatchdogPlan = field(default_factory=WatchdogPlan)
    logs: LogsPlan = field(default_factory=LogsPlan)
    stop_signal: str = "SIGTERM"
    stop_grace_s: float = 60.0
    max_duration_s: float | None = None
    created_s: float = 0.0
    alone: bool = False  # made by the library, no supervisor
    digest: str = ""  # BLAKE2b of the canonical JSON of everything else, hex

    def to_json(self) -> dict[str, Any]:
        """As in plan.json."""
        return {"version": VERSION, **dataclasses.asdict(self)}
