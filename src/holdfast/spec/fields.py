"""The kinds of value a run file holds besides plain ones: each read by `units`, each with its example.

Pure. A `Kind` knows how to read a value, how to write it back, and what to tell who got it wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from holdfast import units, urls
from holdfast.errors import UsageError
from holdfast.spec.mistakes import quote

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
WRONG = "holdfast"  # the type of every pydantic error that already speaks for itself
LEAST_FAILOVER_S = 90.0  # mirror.fence.GONE_S: nobody may take a mirror over before
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_FORMAT_SPEC = re.compile(r"0?\d{0,2}(\.\d{1,2})?[defgs]?", re.ASCII)
_CHECKPOINT_NAME: Mapping[str, object] = {
    "project": "digits", "step": 1200, "epoch": 3, "metric": 0.25, "time": "20260131T120000Z"
}  # fmt: skip
_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT")


class Section(BaseModel):
    """Base of every table of the run file: unknown keys refused, nothing converted behind the user's back."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, serialize_by_alias=True)


def wrong(message: str, hint: str = "") -> PydanticCustomError:
    """An error with its own words."""
    return PydanticCustomError(WRONG, "{said}", {"said": message, "hint": hint})


def _reads(parse: Callable[[str], Any], what: str, hint: str, words: tuple[str, ...] = ()) -> PlainValidator:
    """A validator that reads text with `parse`; `words` stand for themselves."""

    def read(value: Any) -> Any:
        if isinstance(value, str) and value in words:
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            raise wrong(f"{value} has no unit; expected {what}", hint)
        if not isinstance(value, str):
            raise wrong(f"expected {what}, found {found(value)}", hint)
        try:
            return parse(value)
        except units.BadQuantity as error:
            expected = "" if what in str(error) else f"; expected {what}"
            raise wrong(f"{error}{expected}", error.hint) from error

    return PlainValidator(read)


def _writes(write: Callable[[Any], str]) -> PlainSerializer:
    return PlainSerializer(lambda value: value if isinstance(value, str) else write(value))


def _long_enough(value: float | str) -> float | str:
    if isinstance(value, float) and value < LEAST_FAILOVER_S:
        raise wrong(f"a machine counts as gone after {LEAST_FAILOVER_S:.0f}s at the earliest", "10m, or off")
    return value


def _positive(value: float) -> float:
    if value <= 0:  # pydantic's own `gt` is not applied behind a validator that replaces its own
        raise wrong("must be more than zero")
    return value


def _schema(pattern: str, example: str, words: tuple[str, ...] = ()) -> WithJsonSchema:
    said = "|".join([*map(re.escape, words), pattern])
    return WithJsonSchema({"type": "string", "pattern": f"^({said})$", "examples": [example]})


def found(value: object) -> str:
    """What a value is, in words for people."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {quote(value)}"
    return "a list" if isinstance(value, list) else "a table" if isinstance(value, dict) else "something else"


_NUMBER, _UNIT = r"\d+(\.\d+)?", r"(B|[kKMGTP]B|[KMGTP]iB)"
_DURATION = rf"(\s*{_NUMBER}\s*(w|d|h|m|s|ms))+"
_TRIGGER = rf"\d+\s*(steps?|epochs?)|{_DURATION}( if \d+\s*steps?)?"
TRIGGER_SCHEMA = {"type": "string", "pattern": f"^(auto|{_TRIGGER})$"}

Duration = Annotated[
    float,
    _reads(units.parse_duration, "a duration", units.DURATION_EXAMPLE),
    _writes(units.write_duration),
    _schema(_DURATION, "15m"),
]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
AutoDuration = Annotated[
    float | str,
    _reads(units.parse_duration, "auto or a duration", units.DURATION_EXAMPLE, ("auto",)),
    _writes(units.write_duration),
    _schema(_DURATION, "10m", ("auto",)),
]
Persist = Annotated[
    float | str,
    _reads(units.parse_duration, "a duration or no", units.DURATION_EXAMPLE, ("no",)),
    _writes(units.write_duration),
    _schema(_DURATION, "30m", ("no",)),
]
Failover = Annotated[
    float | str,
    _reads(units.parse_duration, "a duration or off", units.DURATION_EXAMPLE, ("off",)),
    AfterValidator(_long_enough),
    _writes(units.write_duration),
    _schema(_DURATION, "10m", ("off",)),
]
Size = Annotated[
    int,
    _reads(units.parse_size, "a size", units.SIZE_EXAMPLE),
    _writes(units.write_size),
    _schema(_NUMBER + _UNIT, "2GB"),
]
Rate = Annotated[
    int,
    _reads(units.parse_rate, "a rate", units.RATE_EXAMPLE),
    _writes(units.write_rate),
    _schema(_NUMBER + _UNIT + "/s", "200MB/s"),
]
Ratio = Annotated[
    float,
    _reads(units.parse_ratio, "a percentage", units.RATIO_EXAMPLE),
    _writes(units.write_ratio),
    _schema(rf"{_NUMBER}\s*%", "3%"),
]
PositiveRatio = Annotated[Ratio, AfterValidator(_positive)]
Trigger = Annotated[
    units.Trigger,
    _reads(units.parse_trigger, "a time or a number of steps or epochs", units.TRIGGER_EXAMPLE),
    _writes(units.write_trigger),
    _schema(_TRIGGER, "1000 steps"),
]
Cadence = Annotated[
    units.Trigger | str,
    _reads(units.parse_cadence, "auto, off, a time or a number of steps", units.CADENCE_EXAMPLE, ("auto", "off")),
    _writes(units.write_trigger),
    _schema(rf"\d+\s*steps?|{_DURATION}", "1 step", ("auto", "off")),
]
Keepalive = Annotated[
    units.Keepalive | str,
    _reads(units.parse_keepalive, "auto, off or interval x count", units.KEEPALIVE_EXAMPLE, ("auto", "off")),
    _writes(units.write_keepalive),
    _schema(r"\d+s?\s*x\s*\d+", "15x3", ("auto", "off")),
]


def _read_accelerators(value: Any) -> units.Accelerators:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise wrong(f"expected a number of devices, found {found(value)}", units.ACCELERATORS_EXAMPLE)
    try:
        return units.parse_accelerators(value)
    except units.BadQuantity as error:
        raise wrong(str(error), error.hint) from error


Accelerators = Annotated[
    units.Accelerators,
    PlainValidator(_read_accelerators),
    _writes(units.write_accelerators),
    WithJsonSchema({"type": ["string", "integer"], "minimum": 1, "pattern": r"^([^:]+|[^:]+:\s*\d+)$"}),
]


def _text(check: Callable[[str], str]) -> PlainValidator:
    def read(value: Any) -> str:
        if not isinstance(value, str):
            hint = "" if value is None or isinstance(value, (dict, list)) else f'write "{value}" in quotes'
            raise wrong(f"expected text, found {found(value)}", hint)
        return check(value)

    return PlainValidator(read)


def _check_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise wrong(
            f"{quote(value)} cannot be a run's name",
            "up to 63 letters, digits, '.', '_' or '-', first a letter or digit",
        )
    return value


def check_command(value: str, *, may_be_empty: bool = False) -> str:
    """A command, or one word of it. Raises the error that says what is wrong."""
    if not value.strip() and not may_be_empty:
        raise wrong("the command is empty")
    if "\0" in value:
        raise wrong("a command cannot hold a NUL character")
    return value


def _check_path(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise wrong(f"{quote(value)} is not a path")
    return value


def _check_signal(value: str) -> str:
    name = value if value.startswith("SIG") else f"SIG{value}"
    if name not in _SIGNALS:
        raise wrong(f"{quote(value)} cannot be the signal that asks to stop", f"one of {', '.join(_SIGNALS)}")
    return name


def _check_pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise wrong(f"{quote(value)} is not a regular expression: {error}") from error
    return value


def _check_checkpoint_name(value: str) -> str:
    known = "known: " + ", ".join(f"{{{name}}}" for name in _CHECKPOINT_NAME)
    if not value or "/" in value or len(value) > 200 or not value.isprintable():
        raise wrong(f"{quote(value)} cannot be a checkpoint's name", "up to 200 printable characters without '/'")
    try:
        parts = list(Formatter().parse(value))
    except ValueError as error:
        raise wrong(f"{quote(value)} is not a name template: {error}", known) from error
    for _, name, spec, conversion in parts:
        if name is not None and (name not in _CHECKPOINT_NAME or conversion or not _fits(name, spec or "")):
            raise wrong(f"{{{name}{':' if spec else ''}{spec}}} cannot be part of a checkpoint's name", known)
    return value


def _fits(name: str, spec: str) -> bool:
    if not _FORMAT_SPEC.fullmatch(spec):
        return False
    try:
        format(_CHECKPOINT_NAME[name], spec)
    except ValueError:
        return False
    return True


def _check_url(value: str) -> str:
    """Whatever `${name}` may stand for; a URL that begins with one is looked at when that is known."""
    try:
        if not value.startswith("${"):
            urls.scheme_of(_REFERENCE.sub(r"\1", value))
    except UsageError as error:
        raise wrong(str(error), error.hint) from error
    return value


def references(text: str) -> list[str]:
    """The names of every `${name}` in a value."""
    return _REFERENCE.findall(text)


_PLAIN = {"type": "string"}
Name = Annotated[str, _text(_check_name), WithJsonSchema({**_PLAIN, "pattern": f"^{NAME.pattern}$"})]
Text = Annotated[str, _text(str), WithJsonSchema(_PLAIN)]
Command = Annotated[str, _text(check_command), WithJsonSchema({**_PLAIN, "minLength": 1})]
Url = Annotated[str, _text(_check_url), WithJsonSchema({**_PLAIN, "minLength": 1})]
Path = Annotated[str, _text(_check_path), WithJsonSchema({**_PLAIN, "minLength": 1})]
Signal = Annotated[str, _text(_check_signal), WithJsonSchema({"enum": list(_SIGNALS)})]
Pattern = Annotated[str, _text(_check_pattern), WithJsonSchema({**_PLAIN, "format": "regex"})]
CheckpointName = Annotated[
    str, _text(_check_checkpoint_name), WithJsonSchema({**_PLAIN, "minLength": 1, "maxLength": 200})
]
