"""The run file as a whole: every field that there is or will be, so that a typo is never taken for a new feature."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PlainSerializer, PlainValidator, Strict, WithJsonSchema

from holdfast.spec.fields import (
    Command,
    Duration,
    Name,
    Path,
    PositiveDuration,
    Section,
    Signal,
    Text,
    check_command,
    found,
    wrong,
)
from holdfast.spec.places import Environment, Link, Resources, SecretRecipe
from holdfast.spec.survival import Checkpoint, Logs, Restart, Watchdog
from holdfast.spec.watching import Alert, Notify, Publishing, React, Tracking, Watch


def _read_run(value: object) -> str | tuple[str, ...]:
    if isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in value):
        if not value or not value[0]:
            raise wrong("the command is empty")
        return tuple(check_command(word, may_be_empty=True) for word in value)
    if not isinstance(value, str):
        raise wrong(f"expected a shell command or a list of words, found {found(value)}")
    return check_command(value)


Run = Annotated[
    str | tuple[str, ...],
    PlainValidator(_read_run),
    PlainSerializer(lambda run: run if isinstance(run, str) else list(run)),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": ["string", "number", "boolean"]}, "minItems": 1},
            ]
        }
    ),
]


Variable = Annotated[Text, WithJsonSchema({"type": ["string", "number", "boolean"]})]


class Spec(Section):
    """What must be true of a run. Only `run` is required."""

    name: Name | None = Field(
        None, description="the run's name; the folder's or the script's when not given", examples=["digits"]
    )
    workdir: Path = Field(
        ".", description="folder with the code; a snapshot is taken for each run, .gitignore honoured"
    )
    resources: Resources = Field(Resources(), description="where to run")
    num_nodes: int = Field(1, ge=1, description="machines")
    envs: dict[str, Variable | None] = Field(
        {},
        description="environment variables, recorded; null must come from the caller",
        examples=["{EPOCHS: 40, DATA: null}"],
    )
    secrets: dict[str, SecretRecipe | None] = Field(
        {},
        description="environment variables that are never recorded; null must come from the caller",
        examples=["{WANDB_API_KEY: null, S3_KEY: {command: pass s3}}"],
    )
    file_mounts: dict[str, Text] = Field(
        {}, description="path there: path or URL here", examples=["{/data: /nfs/data}"]
    )
    setup: Command | None = Field(
        None, description="shell command before the first attempt", examples=["python prepare.py"]
    )
    run: Run = Field(
        description="the training: a shell command as text, or a list of words that goes without a shell",
        examples=["python train.py --epochs $EPOCHS", "[python, train.py]"],
    )
    environment: Environment = Field(Environment(), description="the Python that the command finds")
    link: Link = Field(Link(), description="the connection to a host")
    checkpoint: Checkpoint = Field(Checkpoint(), description="when state is saved, where, and how long it is kept")
    restart: Restart = Field(Restart(), description="whether another attempt follows one that ended")
    watchdog: Watchdog = Field(Watchdog(), description="when a silent run counts as hung")
    segment: PositiveDuration | None = Field(
        None, description="an attempt that ran this long saves and leaves, and the next goes on", examples=["4h"]
    )
    stop_signal: Signal = Field("SIGTERM", description="asks the command to stop")
    stop_grace_period: Duration = Field(180.0, description="from that signal to SIGKILL")
    max_duration: PositiveDuration | None = Field(
        None,
        description="a run that takes longer is stopped; waiting for accelerators does not count",
        examples=["14d"],
    )
    ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], Strict(False)] = Field(
        (), description="lead from here to the run while somebody is attached", examples=["[6006, 8888]"]
    )
    logs: Logs = Field(Logs(), description="the run's output and step records")
    watch: Watch = Field(Watch(), description="what is measured beside the training")
    tracking: Tracking = Field(Tracking(), description="an experiment tracker that is told")
    publish: Publishing = Field(
        None, description="where the best model goes", examples=["{to: mlflow:digits, when: improved}"]
    )
    notify: Annotated[tuple[Notify, ...], Strict(False)] = Field(
        (), description="who is told", examples=["[{url: $SLACK_WEBHOOK, events: [failed]}]"]
    )
    react: Annotated[tuple[React, ...], Strict(False)] = Field(
        (), description="what to do by itself", examples=["[{when: disk_dying, do: checkpoint_now}]"]
    )
    alerts: Annotated[tuple[Alert, ...], Strict(False)] = Field(
        (), description="thresholds of one's own", examples=["[{name: slow, when: gpu_utilization_ratio < 0.3}]"]
    )
