"""Quantities there and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import units
from holdfast.units import Accelerators, BadQuantity, Keepalive, Trigger

amounts = st.integers(min_value=1, max_value=10**9)
triggers = st.one_of(
    st.builds(Trigger, steps=amounts),
    st.builds(Trigger, epochs=amounts),
    st.builds(lambda ms: Trigger(seconds=ms / 1000), amounts),
    st.builds(lambda ms, steps: Trigger(seconds=ms / 1000, if_steps=steps), amounts, amounts),
)
accelerators = st.builds(Accelerators, count=st.integers(1, 9999), kind=st.sampled_from(["", "A100", "RTX 4090", "7"]))
keepalives = st.builds(Keepalive, interval_s=st.integers(1, 999_999), count=st.integers(1, 9999))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("15m", 900), ("12h", 43_200), ("7d", 604_800), ("1h30m", 5400), ("500ms", 0.5), ("1.5h", 5400),
     ("1h 30m", 5400), ("2w", 1_209_600), ("0s", 0)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("2GB", 2 * 10**9), ("1.5KiB", 1536), ("7B", 7), ("1kB", 1000), ("3 TB", 3 * 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


def test_rates_ratios_and_keepalives() -> None:
    assert units.parse_rate("200MB/s") == 200_000_000
    assert units.parse_ratio("3%") == 0.03
    assert units.parse_keepalive("15x3") == Keepalive(interval_s=15, count=3)


@pytest.mark.parametrize(
    ("text", "count", "kind"),
    [("A100:2", 2, "A100"), ("2", 2, ""), (" A100 ", 1, "A100"), ("RTX 4090: 8", 8, "RTX 4090"), ("4090:1", 1, "4090")],
)
def test_accelerators(text: str, count: int, kind: str) -> None:
    assert units.parse_accelerators(text) == Accelerators(count=count, kind=kind)


def test_a_kind_of_device_is_found_in_its_name_whatever_the_case() -> None:
    assert Accelerators(count=1, kind="a100").fit("NVIDIA A100-SXM4-80GB")
    assert Accelerators(count=1).fit("NVIDIA A100-SXM4-80GB")
    assert not Accelerators(count=1, kind="H100").fit("NVIDIA A100-SXM4-80GB")


@pytest.mark.parametrize(
    ("text", "trigger"),
    [("1000 steps", Trigger(steps=1000)), ("1 epoch", Trigger(epochs=1)), ("15m", Trigger(seconds=900.0)),
     ("900s if 1 step", Trigger(seconds=900.0, if_steps=1))],
)  # fmt: skip
def test_triggers(text: str, trigger: Trigger) -> None:
    assert units.parse_trigger(text) == trigger


@pytest.mark.parametrize(
    ("parse", "text", "hint"),
    [
        (units.parse_duration, "30", units.DURATION_EXAMPLE),
        (units.parse_duration, "2:00", units.DURATION_EXAMPLE),
        (units.parse_duration, "-5s", units.DURATION_EXAMPLE),
        (units.parse_duration, "٣s", units.DURATION_EXAMPLE),
        (units.parse_duration, "15min", "write m for min"),
        (units.parse_duration, "1m1h", units.DURATION_EXAMPLE),
        (units.parse_duration, "9" * 400 + "s", units.DURATION_EXAMPLE),
        (units.parse_size, "2gb", "write 2GB"),
        (units.parse_size, "3M", "write 3MB or 3MiB"),
        (units.parse_size, "MiB", units.SIZE_EXAMPLE),
        (units.parse_rate, "200MB", units.RATE_EXAMPLE),
        (units.parse_rate, "200Mb/s", units.RATE_EXAMPLE),
        (units.parse_ratio, "0.03", units.RATIO_EXAMPLE),
        (units.parse_ratio, "300%", units.RATIO_EXAMPLE),
        (units.parse_trigger, "0 steps", units.TRIGGER_EXAMPLE),
        (units.parse_trigger, "0s", units.TRIGGER_EXAMPLE),
        (units.parse_trigger, "10 stps", units.TRIGGER_EXAMPLE),
        (units.parse_trigger, "900s if it rains", units.RULE_EXAMPLE),
        (units.parse_cadence, "1 stp", units.CADENCE_EXAMPLE),
        (units.parse_cadence, "1 epoch", units.CADENCE_EXAMPLE),
        (units.parse_cadence, "30s if 1 step", units.CADENCE_EXAMPLE),
        (units.parse_cadence, "5 minutes", "write m for minutes"),
        (units.parse_keepalive, "15x0", units.KEEPALIVE_EXAMPLE),
        (units.parse_accelerators, "A100:0", units.ACCELERATORS_EXAMPLE),
        (units.parse_accelerators, ":2", units.ACCELERATORS_EXAMPLE),
        (units.parse_accelerators, "", units.ACCELERATORS_EXAMPLE),
        (units.parse_accelerators, "0", units.ACCELERATORS_EXAMPLE),
        (units.parse_accelerators, "A:B:2", units.ACCELERATORS_EXAMPLE),
    ],
)
def test_what_cannot_be_read_is_named_and_an_example_shown(parse: Callable[[str], Any], text: str, hint: str) -> None:
    with pytest.raises(BadQuantity) as caught:
        parse(text)
    assert text[:20] in str(caught.value)
    assert caught.value.hint == hint


@settings(deadline=None)
@given(st.integers(0, 10**14))
def test_durations_come_back(milliseconds: int) -> None:
    assert units.parse_duration(units.write_duration(milliseconds / 1000)) == milliseconds / 1000


@settings(deadline=None)
@given(st.integers(0, 10**11))
def test_sizes_and_rates_come_back(size: int) -> None:
    assert units.parse_size(units.write_size(size)) == size
    assert units.parse_rate(units.write_rate(size)) == size


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_ratios_come_back(hundredths: int) -> None:
    ratio = units.parse_ratio(f"{hundredths / 100:.2f}%")
    assert units.parse_ratio(units.write_ratio(ratio)) == ratio


@settings(deadline=None)
@given(triggers, keepalives, accelerators)
def test_triggers_keepalives_and_accelerators_come_back(
    trigger: Trigger, keepalive: Keepalive, wanted: Accelerators
) -> None:
    assert units.parse_accelerators(units.write_accelerators(wanted)) == wanted
    assert units.parse_trigger(units.write_trigger(trigger)) == trigger
    assert units.parse_keepalive(units.write_keepalive(keepalive)) == keepalive


@pytest.mark.parametrize(
    "parse",
    [
        units.parse_duration,
        units.parse_size,
        units.parse_rate,
        units.parse_ratio,
        units.parse_trigger,
        units.parse_keepalive,
        units.parse_accelerators,
    ],
)
@settings(deadline=None)
@given(text=st.text(max_size=30))
def test_any_text_is_a_quantity_or_a_bad_one(parse: Callable[[str], Any], text: str) -> None:
    try:
        parse(text)
    except BadQuantity as error:
        assert error.hint


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (0.25, "250 ms"), (0.9999, "1 s"), (3.21, "3.2 s"), (41, "41 s"), (59.9, "1 min"), (65, "1 min 5 s"),
     (3600, "1 h"), (33_120, "9 h 12 min"), (100_000, "1 d 3 h"), (-41, "-41 s")],
)  # fmt: skip
def test_durations_for_people(seconds: float, shown: str) -> None:
    assert units.show_duration(seconds) == shown


def test_sizes_and_ratios_for_people() -> None:
    assert [units.show_size(size) for size in (640, 1024, 1.3e9, 1024**2 - 1)] == [
        "640 B",
        "1.0 KiB",
        "1.2 GiB",
        "1.0 MiB",
    ]
    assert [units.show_ratio(ratio) for ratio in (0.03, 0.0042, 1)] == ["3 %", "0.42 %", "100 %"]
