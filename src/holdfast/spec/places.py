"""Where a run happens and with what: `resources`, `environment`, `link`, `secrets`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from holdfast.spec.fields import (
    Accelerators,
    Command,
    Duration,
    Failover,
    Keepalive,
    Path,
    Persist,
    Section,
    Text,
    found,
    wrong,
)
from holdfast.spec.mistakes import quote

_KINDS = ("ssh", "slurm", "k8s")


def _check_infra(value: object) -> str | tuple[str, ...]:
    hint = "local, ssh/<host or pool>, slurm/<partition> or k8s/<context>"
    if isinstance(value, (list, tuple)):
        return _check_pool(value)
    if not isinstance(value, str):
        raise wrong(f"expected a place, found {found(value)}", hint)
    kind, slash, name = value.partition("/")
    if value != "local" and not (slash and kind in _KINDS and name and not name.startswith("-") and name.isprintable()):
        raise wrong(f"{quote(value)} is no place to run", hint)
    return value


def _check_pool(value: list[object] | tuple[object, ...]) -> tuple[str, ...]:
    places = tuple(place for each in value if isinstance(place := _check_infra(each), str))
    hint = "[ssh/gpu-a, ssh/gpu-b]"
    if not places or len(places) != len(value) or not all(place.startswith("ssh/") for place in places):
        raise wrong("a list of places is one of hosts that SSH reaches", hint)
    if len(set(places)) < len(places):
        raise wrong("a host is named twice", hint)
    return places


Infra = Annotated[
    str | tuple[str, ...],
    PlainValidator(_check_infra),
    PlainSerializer(lambda infra: infra if isinstance(infra, str) else list(infra)),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^(local|({'|'.join(_KINDS)})/[^-].*)$"},
                {"type": "array", "items": {"type": "string", "pattern": "^ssh/[^-].*$"}, "minItems": 1},
            ]
        }
    ),
]


class Resources(Section):
    """Where to run, and on what."""

    infra: Infra = Field(
        "local",
        description="local, ssh/<host or pool>, or several of these, of which the freest takes the run; "
        "*later* slurm/<partition> or k8s/<context>",
        examples=["ssh/gpu-a", "[ssh/gpu-a, ssh/gpu-b]"],
    )
    accelerators: Accelerators | None = Field(
        None,
        description="GPUs of the machine that the run has for itself; it waits until that many are free, "
        "all of a type where one is named",
        examples=["A100:2", "2"],
    )
    failover: Failover | None = Field(
        None,
        description="how long the run's machine gives no sign of life on the mirror before another host goes on; 90s "
        "at least, or off; with several hosts and a mirror 10m when not given",
        examples=["10m"],
    )


class Environment(Section):
    """The Python that the command finds; at most one of these."""

    python: Path | None = Field(
        None,
        description="an interpreter that is there already; its folder comes first on PATH",
        examples=[".venv/bin/python"],
    )
    conda: Path | None = Field(None, description="built from this file, without Conda", examples=["environment.yml"])
    uv: Path | None = Field(None, description="built from this project folder", examples=["."])
    image: Text | None = Field(None, description="container image", examples=["docker://pytorch/pytorch"])

    @model_validator(mode="after")
    def _at_most_one(self) -> Environment:
        given = [name for name in ("python", "conda", "uv", "image") if getattr(self, name) is not None]
        if len(given) > 1:
            raise wrong(f"an environment is made from one thing, found {' and '.join(given)}", "keep one of them")
        return self


class Link(Section):
    """The connection to a host; it may break without harm to the run."""

    keepalive: Keepalive = Field("auto", description="interval x count; auto measures", examples=["15x3"])
    persist: Persist = Field(1800.0, description="how long a connection that nobody uses is kept; or no")
    compression: Literal["auto", "on", "off"] = Field("auto", description="of what goes over it")
    max_age: Duration | None = Field(None, description="renewed before it is this old", examples=["7h30m"])
    tcp_keepalive: bool | None = Field(None, description="that of TCP (TCPKeepAlive); on when not given")
    identities_only: bool | None = Field(
        None, description="only keys that are configured (IdentitiesOnly); as your ssh is configured when not given"
    )


class SecretRecipe(Section):
    """Where a secret comes from each time it is needed; the value itself is never written anywhere."""

    command: Command | None = Field(None, description="its first line of output is the secret", examples=["pass s3"])
    file: Path | None = Field(None, description="its content is the secret", examples=["~/.secrets/s3"])

    @model_validator(mode="after")
    def _one_of_both(self) -> SecretRecipe:
        if (self.command is None) == (self.file is None):
            raise wrong("a secret comes from exactly one of command and file", "{command: pass s3} or {file: ~/.s3}")
        return self
