"""What of a command line, and of an order, crosses to another machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from holdfast import creation, spec
from holdfast.commands.orders import is_open, ordering
from holdfast.commands.remote import hidden
from holdfast.commands.run_elsewhere import Wanted
from holdfast.units import Accelerators


def test_no_word_that_crosses_says_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B", "from here")
    words = ["resume", "s3://x", "--secret", "A=hush=1", "--secret=B", "--secret", "C", "--", "sh", "--secret", "D=2"]

    assert hidden(words) == (
        ("resume", "s3://x", "--secret", "A", "--secret=B", "--secret", "C", "--", "sh", "--secret", "D=2"),
        {"A": "hush=1", "B": "from here"},
    )


def test_what_crosses_says_which_devices_and_not_which_machine() -> None:
    text = "run: x\nresources: {infra: ssh/gpu-a, accelerators: A100:2}"
    declared = spec.load([spec.Source("run.yaml", text)], environ={})
    order = creation.Order(spec=declared, base=Path(), copy=False, environ={})

    crossing = Wanted(("gpu-a",), order, "digits", None, None, within_s=1.0).text()

    there = spec.load([spec.Source("-", crossing)], environ={}).resources
    assert (there.infra, there.accelerators) == ("local", Accelerators(count=2, kind="A100"))


@pytest.mark.parametrize(
    ("hosts", "given", "told"),
    [
        (("gpu-a", "gpu-b"), "", 600.0),
        (("gpu-a", "gpu-b"), "failover: 2m", 120.0),
        (("gpu-a", "gpu-b"), "failover: off", "off"),
        (("gpu-a",), "failover: 2m", None),
    ],
)
def test_a_run_of_a_pool_is_told_that_another_host_may_go_on(hosts: tuple[str, ...], given: str, told: object) -> None:
    declared = spec.load([spec.Source("run.yaml", f"run: x\nresources: {{{given}}}")], environ={})
    order = creation.Order(spec=declared, base=Path(), copy=False, environ={})

    crossing = Wanted(hosts, order, "digits", None, None, within_s=1.0).text()

    assert spec.load([spec.Source("-", crossing)], environ={}).resources.failover == told


def test_an_order_that_was_not_confirmed_is_the_same_order() -> None:
    with contextlib.suppress(ConnectionError), ordering("gpu-a", "run: x") as first:
        raise ConnectionError
    with ordering("gpu-a", "run: x") as again, ordering("gpu-a", "run: y") as another:
        pass
    with ordering("gpu-a", "run: x") as later:
        pass

    assert first == again
    assert len({first, another, later}) == 3


def test_an_order_is_open_from_when_it_was_given_up_to_when_it_was_confirmed() -> None:
    assert not is_open("gpu-a", "run: x")
    with contextlib.suppress(ConnectionError), ordering("gpu-a", "run: x"):
        assert not is_open("gpu-a", "run: x")  # somebody is at it
        raise ConnectionError
    assert is_open("gpu-a", "run: x")
    with ordering("gpu-a", "run: x"):
        pass
    assert not is_open("gpu-a", "run: x")


def test_two_that_order_the_same_at_once_have_each_their_own() -> None:
    with ordering("gpu-a", "run: x") as one, ordering("gpu-a", "run: x") as two:
        assert one != two
