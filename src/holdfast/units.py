"""The only parser of quantities, and the way back: for the run file (`write_…`) and for people (`show_…`).

    30s 15m 12h 7d 1h30m 500ms     durations, seconds as float
    64MiB 2GB 200MB/s              sizes and rates, bytes as int; MB is 10^6, MiB is 2^20
    3%                             ratios, 0.03
    1000 steps · 1 epoch · 15m     triggers; `900s if 1 step` asks for progress besides
    1 step · 30s                   cadences
    15x3                           keepalive: every 15 s, dead after 3 unanswered
    A100:2 · 2 · A100              accelerators: so many whose names say so

Pure. A number without a unit is refused everywhere: nobody can know whether 30 means seconds or minutes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from holdfast.errors import UsageError

_SECONDS = {
    "w": Decimal(604_800),
    "d": Decimal(86_400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
_BYTES = {"B": 1} | {
    prefix + unit: base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGTP", start=1)
}
_SPOKEN = {
    "sec": "s", "secs": "s", "second": "s", "seconds": "s", "min": "m", "mins": "m", "minute": "m", "minutes": "m",
    "hr": "h", "hrs": "h", "hour": "h", "hours": "h", "day": "d", "days": "d", "week": "w", "weeks": "w",
    "msec": "ms", "millisecond": "ms", "milliseconds": "ms",
}  # fmt: skip
_NUMBER = r"\d{1,12}(?:\.\d{1,9})?"
_PART = re.compile(rf"\s*({_NUMBER})\s*([a-zA-Z]+)", re.ASCII)
_COUNTED = re.compile(r"(\d{1,12})\s*([a-z]+)", re.ASCII)
_RATIO = re.compile(rf"({_NUMBER})\s*%", re.ASCII)
_KEEPALIVE = re.compile(r"(\d{1,6})\s*s?\s*x\s*(\d{1,4})", re.ASCII)
_COUNT = re.compile(r"[1-9]\d{0,3}", re.ASCII)
_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._()/-]{0,99}", re.ASCII)

DURATION_EXAMPLE = "write it like 30s, 15m, 1h30m or 7d"
SIZE_EXAMPLE = "write it like 64MiB or 2GB"
RATE_EXAMPLE = "write it like 200MB/s"
RATIO_EXAMPLE = "write it like 3%"
TRIGGER_EXAMPLE = "write it like 15m, 1000 steps or 1 epoch"
CADENCE_EXAMPLE = "write it like 1 step, 100 steps or 30s"
RULE_EXAMPLE = "write it like 900s if 1 step"
KEEPALIVE_EXAMPLE = "write it like 15x3: every 15 s, dead after 3 unanswered"
ACCELERATORS_EXAMPLE = "write it like 2, A100 or A100:2"


class BadQuantity(UsageError):
    """A quantity that cannot be read; the message names the value, the hint shows one that can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """One entry of `checkpoint.every`: exactly one of the first three is set."""

    steps: int | None = None
    seconds: float | None = None
    epochs: int | None = None
    if_steps: int | None = None  # and only when that many steps were done since the last save


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """`link.keepalive`: one probe every `interval_s`; `count` unanswered ones in a row mean the link is dead."""

    interval_s: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerators:
    """`resources.accelerators`: `count` devices whose names hold `kind`, whatever its case; empty for any."""

    count: int
    kind: str = ""

    def fit(self, name: str) -> bool:
        """Whether a device of that name is one of them."""
        return self.kind.casefold() in name.casefold()


def parse_duration(text: str) -> float:
    """Seconds of `1h30m`. Raises BadQuantity."""
    stripped, at, total = text.strip(), 0, Decimal(0)
    units: list[str] = []
    while at < len(stripped) and (found := _PART.match(stripped, at)):
        number, unit = found.groups()
        if unit not in _SECONDS:
            raise BadQuantity(f"{_quote(text)} has an unknown unit {_quote(unit)}", hint=_spoken(unit))
        units.append(unit)
        total += Decimal(number) * _SECONDS[unit]
        at = found.end()
    if at < len(stripped) or not units:
        raise BadQuantity(f"{_quote(text)} is not a duration", hint=DURATION_EXAMPLE)
    order = list(_SECONDS)
    if sorted(set(units), key=order.index) != units:
        raise BadQuantity(f"{_quote(text)} names its units twice or out of order", hint=DURATION_EXAMPLE)
    return float(total)


def parse_size(text: str) -> int:
    """Bytes of `64MiB`. Raises BadQuantity."""
    found = _PART.fullmatch(text.rstrip())
    if found is None:
        raise BadQuantity(f"{_quote(text)} is not a size", hint=SIZE_EXAMPLE)
    number, unit = found.groups()
    factor = _BYTES.get("KB" if unit == "kB" else unit)
    if factor is None:
        raise BadQuantity(f"{_quote(text)} has an unknown unit {_quote(unit)}", hint=_size_hint(number, unit))
    return int(Decimal(number) * factor)


def parse_rate(text: str) -> int:
    """Bytes a second of `200MB/s`. Raises BadQuantity."""
    amount, slash, second = text.strip().rpartition("/")
    if not slash or second.strip() != "s":
        raise BadQuantity(f"{_quote(text)} is not a rate", hint=RATE_EXAMPLE)
    try:
        return parse_size(amount)
    except BadQuantity as error:
        raise BadQuantity(f"{_quote(text)} is not a rate", hint=RATE_EXAMPLE) from error


def parse_ratio(text: str) -> float:
    """0.03 of `3%`, 0 to 1. Raises BadQuantity."""
    found = _RATIO.fullmatch(text.strip())
    if found is None:
        raise BadQuantity(f"{_quote(text)} is not a percentage", hint=RATIO_EXAMPLE)
    if (percent := Decimal(found[1])) > 100:
        raise BadQuantity(f"{_quote(text)} is more than 100%", hint=RATIO_EXAMPLE)
    return float(percent / 100)


def parse_trigger(text: str) -> Trigger:
    """One entry of `checkpoint.every`. Raises BadQuantity."""
    period, condition, progress = text.strip().partition(" if ")
    if condition:
        if (steps := _count(progress, "step")) is None:
            raise BadQuantity(f"{_quote(text)}: {_quote(progress)} is not a number of steps", hint=RULE_EXAMPLE)
        return Trigger(seconds=_positive(parse_duration(period), text), if_steps=int(_positive(steps, text)))
    for unit in ("step", "epoch"):
        if (count := _count(period, unit)) is not None:
            return Trigger(**{unit + "s": int(_positive(count, text))})
    try:
        seconds = parse_duration(period)
    except BadQuantity as error:
        hint = TRIGGER_EXAMPLE if error.hint == DURATION_EXAMPLE else error.hint
        raise BadQuantity(f"{_quote(text)} is not a trigger", hint=hint) from error
    return Trigger(seconds=_positive(seconds, text))


def parse_cadence(text: str) -> Trigger:
    """`checkpoint.memory`: so many steps, or a time. Raises BadQuantity."""
    try:
        trigger = parse_trigger(text)
    except BadQuantity as error:
        hint = CADENCE_EXAMPLE if error.hint in (TRIGGER_EXAMPLE, RULE_EXAMPLE) else error.hint
        raise BadQuantity(str(error).replace("not a trigger", "not a cadence"), hint=hint) from error
    if trigger.epochs is not None or trigger.if_steps is not None:
        raise BadQuantity(f"{_quote(text)} is not a cadence", hint=CADENCE_EXAMPLE)
    return trigger


def parse_keepalive(text: str) -> Keepalive:
    """`15x3`. Raises BadQuantity."""
    found = _KEEPALIVE.fullmatch(text.strip())
    if found is None or not int(found[1]) or not int(found[2]):
        raise BadQuantity(f"{_quote(text)} is not a keepalive", hint=KEEPALIVE_EXAMPLE)
    return Keepalive(interval_s=int(found[1]), count=int(found[2]))


def parse_accelerators(text: str) -> Accelerators:
    """`A100:2`, `2` of any kind, or `A100` for one of it. Raises BadQuantity."""
    stripped = text.strip()
    if _COUNT.fullmatch(stripped):
        return Accelerators(count=int(stripped))
    kind, colon, count = (part.strip() for part in stripped.rpartition(":"))
    if not colon:
        kind, count = stripped, "1"
    if not _COUNT.fullmatch(count) or not _KIND.fullmatch(kind) or (not colon and kind.isdecimal()):
        raise BadQuantity(f"{_quote(text)} are no accelerators", hint=ACCELERATORS_EXAMPLE)
    return Accelerators(count=int(count), kind=kind)


def write_duration(seconds: float) -> str:
    """As in a run file, to the millisecond: 5400 → `1h30m`."""
    left, said = round(Decimal(repr(seconds)) * 1000), ""
    for unit in ("d", "h", "m", "s", "ms"):
        whole = int(_SECONDS[unit] * 1000)
        count, left = divmod(left, whole)
        said += f"{count}{unit}" if count else ""
    return said or "0s"


def write_size(size_bytes: int) -> str:
    """As in a run file, exact, in the biggest unit that divides it."""
    fitting = (unit for unit in _by_size() if size_bytes and not size_bytes % _BYTES[unit])
    unit = next(fitting, "B")
    return f"{size_bytes // _BYTES[unit]}{unit}"


def write_rate(bytes_per_s: int) -> str:
    """As in a run file: `200MB/s`."""
    return write_size(bytes_per_s) + "/s"


def write_ratio(ratio: float) -> str:
    """As in a run file: 0.03 → `3%`."""
    return f"{(Decimal(repr(ratio)) * 100).normalize():f}%"


def write_trigger(trigger: Trigger) -> str:
    """As in a run file: `1000 steps`, `15m`, `900s if 1 step`."""
    if trigger.steps is not None:
        return _plural(trigger.steps, "step")
    if trigger.epochs is not None:
        return _plural(trigger.epochs, "epoch")
    period = write_duration(trigger.seconds or 0.0)
    return period if trigger.if_steps is None else f"{period} if {_plural(trigger.if_steps, 'step')}"


def write_keepalive(keepalive: Keepalive) -> str:
    """As in a run file: `15x3`."""
    return f"{keepalive.interval_s}x{keepalive.count}"


def write_accelerators(accelerators: Accelerators) -> str:
    """As in a run file: `A100:2`, `2`."""
    return f"{accelerators.kind}:{accelerators.count}" if accelerators.kind else str(accelerators.count)


def show_duration(seconds: float) -> str:
    """For people: `250 ms`, `41 s`, `9 h 12 min`, `3 d 4 h`; the two biggest units."""
    if seconds < 0:
        return "-" + show_duration(-seconds)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    left = round(seconds)
    shown: list[tuple[int, str]] = []
    for unit, name in (("d", "d"), ("h", "h"), ("m", "min"), ("s", "s")):
        count, left = divmod(left, int(_SECONDS[unit]))
        if count or shown:
            shown.append((count, name))
    return " ".join(f"{count} {name}" for count, name in shown[:2] if count)


def show_size(size_bytes: float) -> str:
    """For people: `640 B`, `1.2 GiB`."""
    value, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1023.95:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def show_ratio(ratio: float) -> str:
    """For people: `3 %`, `0.4 %`."""
    return f"{ratio * 100:.3g} %"


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _count(text: str, unit: str) -> int | None:
    found = _COUNTED.fullmatch(text.strip())
    return int(found[1]) if found and found[2] in (unit, unit + "s") else None


def _positive(value: float, text: str) -> float:
    if value <= 0:
        raise BadQuantity(f"{_quote(text)} must be more than zero", hint=TRIGGER_EXAMPLE)
    return value


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _by_size() -> list[str]:
    return sorted(_BYTES, key=lambda unit: -_BYTES[unit])


def _spoken(unit: str) -> str:
    meant = _SPOKEN.get(unit.lower())
    return f"write {meant} for {unit}" if meant else DURATION_EXAMPLE


def _size_hint(number: str, unit: str) -> str:
    near = [known for known in _BYTES if known.lower().startswith(unit.lower())]
    return f"write {' or '.join(number + known for known in near)}" if near else SIZE_EXAMPLE
