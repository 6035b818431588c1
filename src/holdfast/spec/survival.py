"""What keeps a run alive and its work safe: `checkpoint`, `restart`, `watchdog`, `logs`.

Defaults are given as what they are (seconds, bytes, ratios); the reference shows them as one would write them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, Strict, WithJsonSchema, model_validator

from holdfast import units
from holdfast.spec.fields import (
    TRIGGER_SCHEMA,
    AutoDuration,
    Cadence,
    CheckpointName,
    Duration,
    Path,
    Pattern,
    PositiveDuration,
    PositiveRatio,
    Rate,
    Section,
    Size,
    Text,
    Trigger,
    Url,
    wrong,
)

# how `exits` classifies the end of an attempt that nobody asked for
ExitClass = Literal[
    "killed", "host_oom", "cuda_oom", "cuda_error", "nccl_error", "hang", "preempted", "code_error", "import_error",
    "disk_full", "segfault", "bus_error", "abort", "cannot_start", "lost", "no_checkpoint", "unknown",
]  # fmt: skip


def _read_every(value: object) -> object:
    """`15m` is short for `[15m]`; `auto` stands alone and is held as no trigger of one's own."""
    if value == "auto":
        return ()
    if value == []:
        raise wrong("no trigger is given", "auto, or at least one: [15m, 1000 steps]")
    return value if isinstance(value, list) else [value]  # a bare number is then told that it has no unit


def _one_of_each(every: tuple[units.Trigger, ...]) -> tuple[units.Trigger, ...]:
    for unit in ("steps", "seconds", "epochs"):
        alike = [units.write_trigger(each) for each in every if getattr(each, unit) and each.if_steps is None]
        if len(alike) > 1:
            raise wrong(
                f"{' and '.join(alike)} are of one kind; only the first to come would count", "keep one of them"
            )
    return every


def _write_every(every: tuple[units.Trigger, ...]) -> str | list[str]:
    return [units.write_trigger(each) for each in every] or "auto"


def _url_alone(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


Every = Annotated[
    tuple[Trigger, ...],
    BeforeValidator(_read_every),
    AfterValidator(_one_of_each),
    PlainSerializer(_write_every),
    Strict(False),
    WithJsonSchema({"anyOf": [TRIGGER_SCHEMA, {"type": "array", "items": TRIGGER_SCHEMA, "minItems": 1}]}),
]


def _without_if(every: units.Trigger) -> units.Trigger:
    if every.if_steps is not None:
        raise wrong(f"{units.write_trigger(every)} cannot stand here", "a number of steps or epochs, or a time")
    return every


class Best(Section):
    """The best by a logged metric are kept besides the last ones."""

    metric: Text = Field(description="name of a value given to `run.log`", examples=["val_loss"])
    mode: Literal["min", "max"] = Field("min", description="whether less or more is better")
    count: int = Field(1, ge=1, description="how many of the best")


class Keep(Section):
    """Which checkpoints stay; the newest valid one always does."""

    last: int = Field(3, ge=1, description="the newest N")
    best: Best | None = Field(
        None, description="the best by a metric", examples=["{metric: val_loss, mode: min, count: 1}"]
    )
    every: Annotated[Trigger, AfterValidator(_without_if)] | None = Field(
        None, description="also the first at or after each multiple of this", examples=["10000 steps"]
    )
    max_age: Duration | None = Field(
        None, description="older multiples, and older ones set aside, go; the last and the best stay", examples=["7d"]
    )
    max_size: Size | None = Field(
        None, description="past this the oldest go; two verified ones stay", examples=["500GB"]
    )


class Mirror(Section):
    """A second place, on another machine; a URL alone will do."""

    url: Url = Field(description="where, as the object store names it", examples=["s3://bucket/runs/${run}"])
    every: Annotated[Trigger, AfterValidator(_without_if)] | None = Field(
        None, description="how often; when not given each commit, with `every: auto` as it decides", examples=["30m"]
    )
    bandwidth: Rate | None = Field(None, description="upper bound", examples=["200MB/s"])
    logs: bool = Field(False, description="the log goes there too")


class Checkpoint(Section):
    """When state is saved, where, and how long it is kept."""

    dir: Path | None = Field(None, description="folder; the run's own when not given", examples=["/data/ckpt/${run}"])
    every: Every = Field(
        (),
        description="when to save, whichever comes first; auto chooses the interval that costs least",
        examples=["[15m, 1000 steps, 1 epoch]", "[900s if 1 step, 60s if 1000 steps]"],
    )
    memory: Cadence = Field("auto", description="cadence of the copies in memory", examples=["1 step"])
    memory_dir: Path | None = Field(
        None, description="files there in place of memory of our own", examples=["/mnt/ram/${run}"]
    )
    max_overhead: PositiveRatio = Field(0.03, description="share of the time that saving may take with `every: auto`")
    timeout: Duration = Field(1800.0, description="a save that takes longer has failed")
    name: CheckpointName = Field(
        "{project}-{step:08d}",
        description="how checkpoints are called; {project} {step} {epoch} {metric} {time}",
        examples=['"{project}-{epoch}-{step:08d}"'],
    )
    keep: Keep = Field(Keep(), description="which ones stay")
    mirror: Annotated[Mirror | None, BeforeValidator(_url_alone)] = Field(
        None, description="a copy on an object store", examples=["s3://bucket/runs/${run}"]
    )


class Backoff(Section):
    """The pause before a restart; the first one after progress has none."""

    initial: Duration = Field(1.0, description="pause before the second restart in a row")
    factor: float = Field(2.0, ge=1, le=100, description="how much longer each further one is")
    max: Duration = Field(600.0, description="longest pause")


class Window(Section):
    """More restarts than this in so short a time end the run."""

    restarts: int = Field(5, ge=1, description="how many")
    per: Duration = Field(3600.0, description="in how long")


class Rule(Section):
    """What to do after one kind of exit; exactly one of class, exit_codes and pattern says which."""

    exit_class: ExitClass | None = Field(
        None, alias="class", description="how holdfast classified the exit", examples=["cuda_oom"]
    )
    exit_codes: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], Strict(False)] = Field(
        (), description="exit codes of the command", examples=["[33, 34]"]
    )
    pattern: Pattern | None = Field(
        None,
        description="regular expression, searched in the last lines of the output",
        examples=['"uncorrectable ECC"'],
    )
    action: Literal["restart", "stop"] = Field("restart", description="what to do then")
    free: bool = Field(False, description="such a restart does not count against the budgets")

    @model_validator(mode="after")
    def _one_condition(self) -> Rule:
        if sum((self.exit_class is not None, bool(self.exit_codes), self.pattern is not None)) != 1:
            raise wrong("a rule needs exactly one of class, exit_codes and pattern")
        return self


class Restart(Section):
    """Whether another attempt follows one that ended."""

    policy: Literal["no", "on-failure", "always"] = Field("on-failure", description="when to restart at all")
    max_restarts: int = Field(20, ge=0, description="in all")
    max_no_progress: int = Field(3, ge=1, description="in a row without a newer checkpoint")
    backoff: Backoff = Field(Backoff(), description="pauses between restarts")
    window: Window = Field(Window(), description="bound on restarts in a short time")
    rules: Annotated[tuple[Rule, ...], Strict(False)] = Field(
        (), description="exceptions; the first that matches wins", examples=["[{class: cuda_oom, action: stop}]"]
    )


class Watchdog(Section):
    """When a silent run counts as hung; stacks of all processes are written first, whatever the action."""

    startup: PositiveDuration = Field(1800.0, description="longest time to the first step")
    progress: AutoDuration = Field(
        "auto", description="longest time between two steps; auto learns it from the run", examples=["10m"]
    )
    action: Literal["restart", "dump", "notify"] = Field(
        "restart", description="what to do; restart needs heartbeats of the library, without them it is notify"
    )


class Logs(Section):
    """The run's output and step records."""

    keep: Size = Field(2_000_000_000, description="of output; the oldest goes first, offsets never move")
    sync: Literal["always", "1s", "os"] = Field("1s", description="when step records are forced to disk")
    heartbeat: Duration = Field(600.0, description="a line about the state in the output this often")
