"""Who sees the run and what they may do: `watch`, `tracking`, `publish`, `notify`, `react`, `alerts`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, model_validator

from holdfast.spec.fields import Duration, PositiveDuration, Section, Size, Text, wrong


def _target_alone(value: object) -> object:
    return {"to": value} if isinstance(value, str) else value


class Watch(Section):
    """What is measured beside the training, how often, and how much of it is kept."""

    interval: PositiveDuration = Field(1.0, description="between two samples")
    intervals: dict[str, Duration] = Field({}, description="of single probes", examples=["{smart: 10m}"])
    history: Size = Field(500_000_000, description="of measurements kept")


class Tracking(Section):
    """An experiment tracker that is told of parameters and metrics."""

    mlflow: Text | None = Field(None, description="address of an MLflow server", examples=["http://127.0.0.1:5000"])
    experiment: Text | None = Field(None, description="name of the experiment there", examples=["digits"])


class Publish(Section):
    """Where the best model goes; a target alone will do."""

    to: Text = Field(description="registry and name", examples=["mlflow:digits"])
    when: Literal["improved", "finished"] = Field("improved", description="each time it is better, or once at the end")


class Notify(Section):
    """Somebody who is told; a `url` for events, or a `heartbeat` that is called while all is well."""

    url: Text | None = Field(None, description="webhook", examples=["$SLACK_WEBHOOK"])
    events: Annotated[tuple[Text, ...], Strict(False)] = Field(
        ("failed", "hung", "finished"), description="which events", examples=["[failed, finished]"]
    )
    heartbeat: Text | None = Field(None, description="address that is called", examples=["https://example.org/ping"])
    every: PositiveDuration = Field(300.0, description="how often the heartbeat is")

    @model_validator(mode="after")
    def _one_of_both(self) -> Notify:
        if (self.url is None) == (self.heartbeat is None):
            raise wrong(
                "a notify entry has exactly one of url and heartbeat", "{url: $SLACK_WEBHOOK, events: [failed]}"
            )
        return self


class React(Section):
    """What to do by itself when a finding appears."""

    when: Text = Field(description="id of the finding", examples=["disk_dying"])
    do: Text = Field(description="name of the action", examples=["checkpoint_now"])
    most: int = Field(1, ge=1, description="how often at most in a run")


class Alert(Section):
    """A threshold of one's own."""

    name: Text = Field(description="how it is called", examples=["slow"])
    when: Text = Field(description="condition on a metric", examples=["gpu_utilization_ratio < 0.3"])
    hold: Duration = Field(120.0, description="how long the condition must hold")
    severity: Literal["info", "warning", "error"] = Field("warning", description="how bad it is")


Publishing = Annotated[Publish | None, BeforeValidator(_target_alone)]
