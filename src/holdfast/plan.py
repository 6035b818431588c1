"""What will be done, with no look-ups left: spec + host facts → plan.

Pure. `plan.json` is `Plan.to_json`; the trainer side reads its `checkpoint` and `logs` tables with the standard
library alone. No secret is ever part of it, only their names and where they come from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.errors import HoldfastError

if TYPE_CHECKING:
    from holdfast import units
    from holdfast.spec import Spec, survival

VERSION = 1

VISIBLE = "CUDA_VISIBLE_DEVICES"  # to programs on CUDA

# What of the caller's environment decides which programs, libraries and devices a run gets: recorded, so that it is
# the same after a reboot. Everything else is inherited and not recorded, since it may hold secrets.
RECORDED = (
    "PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CUDA_HOME",
    VISIBLE, "LANG", "LC_ALL", "TZ",
)  # fmt: skip
_SYNC = {"always": "always", "1s": "everysec", "os": "no"}
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A Redis-style rule of `checkpoint.every`: after `seconds`, if `steps` or more were done since the last save."""

    seconds: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """When to save: whichever comes first. All None with `auto` false: only on request and at the end."""

    auto: bool = True
    steps: int | None = None
    seconds: float | None = None
    epochs: int | None = None
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """`checkpoint.memory`, the cadence of the copies in memory. Off when `auto` is false and nothing else is set."""

    auto: bool = True
    steps: int | None = None
    seconds: float | None = None
    dir: str | None = None  # files there in place of memfds: `checkpoint.memory_dir`

    @property
    def on(self) -> bool:
        """Whether copies in memory are kept for a restart at all."""
        return self.auto or self.steps is not None or self.seconds is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """`checkpoint.keep.best`: keep the `count` best by a logged metric."""

    metric: str
    mode: str = "min"  # min | max
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """`checkpoint.keep`. Of the `every_` fields one at most is set."""

    last: int = 3
    best: Best | None = None
    every_steps: int | None = None
    every_epochs: int | None = None
    every_s: float | None = None
    max_age_s: float | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorPlan:
    """`checkpoint.mirror`, resolved. No credential is ever in it. All `every_` None: each commit, or `auto`."""

    url: str
    every_s: float | None = None
    every_steps: int | None = None
    every_epochs: int | None = None
    bytes_per_s: float | None = None
    logs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlan:
    """`checkpoint`, resolved."""

    dir: str
    every: Every = field(default_factory=Every)
    max_overhead_ratio: float = 0.03
    timeout_s: float = 1800.0
    name: str = "{project}-{step:08d}"
    keep: Keep = field(default_factory=Keep)
    memory: Memory = field(default_factory=Memory)
    mirror: MirrorPlan | None = None


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
    max_bytes: int = 2_000_000_000
    heartbeat_s: float = 600.0


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
    secret_recipes: dict[str, dict[str, str]] = field(default_factory=dict)  # name → {command} or {file}
    checkpoint: CheckpointPlan
    restart: RestartPlan = field(default_factory=RestartPlan)
    watchdog: WatchdogPlan = field(default_factory=WatchdogPlan)
    logs: LogsPlan = field(default_factory=LogsPlan)
    stop_signal: str = "SIGTERM"
    stop_grace_s: float = 180.0
    max_duration_s: float | None = None
    segment_s: float | None = None
    accelerators: str = ""  # as in the run file: `A100:2`; empty for a run that asks for none
    created_s: float = 0.0
    alone: bool = False  # made by the library, no supervisor
    yields: bool = False  # of a pool: stops once another machine has gone on with it
    digest: str = ""  # BLAKE2b of the canonical JSON of everything else, hex

    def to_json(self) -> dict[str, Any]:
        """As in plan.json."""
        return {"version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Plan:
        """The plan of a plan.json. Raises HoldfastError when it is of another version, incomplete or changed."""
        refuse_newer(raw)
        version = raw.get("version")
        if version != VERSION:
            raise HoldfastError(
                f"plan.json has version {raw.get('version')!r}, this holdfast reads version {VERSION}",
                hint="use the holdfast that made the run",
            )
        if raw.get("digest") and raw["digest"] != digest(raw):
            raise HoldfastError("plan.json was changed after the run was made", hint="start a new run instead")
        try:
            plan: Plan = _record(cls, raw)
        except (TypeError, AttributeError) as error:
            raise HoldfastError(f"plan.json is damaged: {error}") from error
        return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a plan needs to know of the machine and the call. Paths are absolute."""

    run: str  # the run id
    dir: str  # the run directory
    name: str  # when the run file gives none
    base: str  # what relative paths of the run file stand on: the folder of the file
    cwd: str  # where the command runs
    shell: str  # bash, or sh where there is none
    home: str  # what ~ stands for
    environ: Mapping[str, str] = field(default_factory=dict)  # the caller's; only `RECORDED` is taken
    init: str = ""  # FOLDER@TERM-SEQUENCE whose weights the first start begins with
    now_s: float = 0.0


def make(spec: Spec, facts: Facts) -> Plan:
    """The plan of a run: every default filled in, every path absolute, every reference replaced."""
    plan = Plan(
        run=facts.run,
        name=spec.name or facts.name,
        dir=facts.dir,
        argv=(facts.shell, "-c", spec.run) if isinstance(spec.run, str) else spec.run,
        cwd=facts.cwd,
        setup=(facts.shell, "-c", spec.setup) if spec.setup else (),
        env=_environment(spec, facts),
        secret_names=tuple(sorted(spec.secrets)),
        secret_recipes=_recipes(spec, facts),
        checkpoint=_checkpoint(spec, facts),
        restart=_restart(spec),
        watchdog=_watchdog(spec),
        logs=LogsPlan(sync=_SYNC[spec.logs.sync], max_bytes=spec.logs.keep, heartbeat_s=spec.logs.heartbeat),
        stop_signal=spec.stop_signal,
        stop_grace_s=spec.stop_grace_period,
        max_duration_s=spec.max_duration,
        segment_s=spec.segment,
        accelerators=_accelerators(spec),
        yields=spec.resources.failover is not None,
        created_s=facts.now_s,
    )
    return dataclasses.replace(plan, digest=digest(plan.to_json()))


def refuse_newer(raw: Mapping[str, Any]) -> None:
    """Raise HoldfastError for a plan.json that this version does not know enough of to touch its run."""
    version = raw.get("version")
    if isinstance(version, int) and version > VERSION:
        raise HoldfastError(
            f"the run was made by a newer holdfast: its plan has version {version}, this holdfast reads {VERSION}",
            hint="update holdfast on the machine you call it from; the run itself is not touched",
        )


def digest(raw: Mapping[str, Any]) -> str:
    """BLAKE2b of the canonical JSON of a plan.json without its digest, hex."""
    rest = {key: value for key, value in raw.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=32).hexdigest()


def references_of(written: str, spec: Spec, facts: Facts) -> str:
    """A text of the run file with ${name}, ${run} and variables of envs replaced."""
    known = {
        **{name: value or "" for name, value in spec.envs.items()},
        "name": spec.name or facts.name,
        "run": facts.run,
    }
    return _REFERENCE.sub(lambda match: known.get(match[1], match[0]), written)


def path_of(written: str, spec: Spec, facts: Facts) -> str:
    """A path of the run file made absolute: references replaced, ~ and the base put in."""
    path = references_of(written, spec, facts)
    if path == "~" or path.startswith("~/"):
        path = facts.home + path[1:]
    return posixpath.normpath(posixpath.join(facts.base, path))


def _environment(spec: Spec, facts: Facts) -> dict[str, str]:
    recorded = {name: facts.environ[name] for name in RECORDED if name in facts.environ}
    if spec.resources.accelerators is not None:  # each attempt gets those that it has
        recorded.pop(VISIBLE, None)
    given = {name: value for name, value in spec.envs.items() if value is not None}
    env = recorded | given
    if spec.environment.python is not None:
        folder = posixpath.dirname(path_of(spec.environment.python, spec, facts))
        env["PATH"] = ":".join(part for part in (folder, env.get("PATH", "")) if part)
    if facts.init:
        env["HOLDFAST_INIT"] = facts.init
    return env


def _accelerators(spec: Spec) -> str:
    from holdfast.units import write_accelerators  # not for the trainer side, which reads plans

    wanted = spec.resources.accelerators
    return "" if wanted is None else write_accelerators(wanted)


def _recipes(spec: Spec, facts: Facts) -> dict[str, dict[str, str]]:
    recipes = {}
    for name, recipe in spec.secrets.items():
        if recipe is not None and recipe.command is not None:
            recipes[name] = {"command": recipe.command}
        elif recipe is not None and recipe.file is not None:
            recipes[name] = {"file": path_of(recipe.file, spec, facts)}
    return recipes


def _checkpoint(spec: Spec, facts: Facts) -> CheckpointPlan:
    given = spec.checkpoint
    return CheckpointPlan(
        dir=path_of(given.dir, spec, facts) if given.dir is not None else posixpath.join(facts.dir, "checkpoints"),
        every=_every(given.every),
        max_overhead_ratio=given.max_overhead,
        timeout_s=given.timeout,
        name=given.name,
        keep=_keep(given.keep),
        memory=_memory(given, spec, facts),
        mirror=_mirror(given.mirror, spec, facts) if given.mirror is not None else None,
    )


def _every(triggers: tuple[units.Trigger, ...]) -> Every:
    found: dict[str, Any] = {}
    rules = []
    for trigger in triggers:
        if trigger.if_steps is not None:
            rules.append(Rule(seconds=trigger.seconds or 0.0, steps=trigger.if_steps))
            continue
        for unit in ("steps", "seconds", "epochs"):
            if (amount := getattr(trigger, unit)) is not None:
                found[unit] = amount
    return Every(auto=not triggers, rules=tuple(rules), **found)


def _keep(given: survival.Keep) -> Keep:
    best, every = given.best, given.every
    return Keep(
        last=given.last,
        best=Best(metric=best.metric, mode=best.mode, count=best.count) if best else None,
        every_steps=every.steps if every else None,
        every_epochs=every.epochs if every else None,
        every_s=every.seconds if every else None,
        max_age_s=given.max_age,
        max_bytes=given.max_size,
    )


def _memory(given: survival.Checkpoint, spec: Spec, facts: Facts) -> Memory:
    folder = path_of(given.memory_dir, spec, facts) if given.memory_dir is not None else None
    if isinstance(given.memory, str):
        return Memory(auto=given.memory == "auto", dir=folder)
    return Memory(auto=False, steps=given.memory.steps, seconds=given.memory.seconds, dir=folder)


def _mirror(given: survival.Mirror, spec: Spec, facts: Facts) -> MirrorPlan:
    every = given.every
    return MirrorPlan(
        url=references_of(given.url, spec, facts),
        every_s=every.seconds if every else None,
        every_steps=every.steps if every else None,
        every_epochs=every.epochs if every else None,
        bytes_per_s=given.bandwidth,
        logs=given.logs,
    )


def _restart(spec: Spec) -> RestartPlan:
    given = spec.restart
    return RestartPlan(
        policy=given.policy,
        max_restarts=given.max_restarts,
        max_no_progress=given.max_no_progress,
        backoff_initial_s=given.backoff.initial,
        backoff_factor=given.backoff.factor,
        backoff_max_s=given.backoff.max,
        window_restarts=given.window.restarts,
        window_s=given.window.per,
        rules=tuple(
            RestartRule(
                exit_class=rule.exit_class,
                exit_codes=rule.exit_codes,
                pattern=rule.pattern,
                action=rule.action,
                free=rule.free,
            )
            for rule in given.rules
        ),
    )


def _watchdog(spec: Spec) -> WatchdogPlan:
    progress = spec.watchdog.progress
    return WatchdogPlan(
        startup_s=spec.watchdog.startup,
        progress_s=None if isinstance(progress, str) else progress,
        action=spec.watchdog.action,
    )


_INSIDE: Mapping[type[Any], Mapping[str, type[Any]]] = {
    Plan: {"checkpoint": CheckpointPlan, "restart": RestartPlan, "watchdog": WatchdogPlan, "logs": LogsPlan},
    CheckpointPlan: {"every": Every, "keep": Keep, "memory": Memory, "mirror": MirrorPlan},
    Every: {"rules": Rule},
    Keep: {"best": Best},
    RestartPlan: {"rules": RestartRule},
}


def _record(kind: type[Any], raw: Mapping[str, Any]) -> Any:
    """A record from its JSON; keys that this version does not know are left out."""
    inside = _INSIDE.get(kind, {})
    given = {}
    for known in dataclasses.fields(kind):
        if known.name in raw:
            value, inner = raw[known.name], inside.get(known.name)
            if isinstance(value, (list, tuple)):
                value = tuple(_record(inner, item) if inner else item for item in value)
            elif inner is not None and value is not None:
                value = _record(inner, value)
            given[known.name] = value
    return kind(**given)
