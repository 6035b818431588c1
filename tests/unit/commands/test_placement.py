"""Which host of a pool takes a run. Nobody is asked."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.commands.placement import Choice, NowhereToRun, choose
from holdfast.units import Accelerators

TWO, A100S = Accelerators(count=2), Accelerators(count=2, kind="a100")
T4 = {"run": "x", "wants": "T4:1"}
FREE, RUN, BUSY = ("", ""), ("other", ""), ("", "ada, pid 7")


def host(*devices: tuple[str, str], kind: str = "NVIDIA A100-SXM4", **told: Any) -> dict[str, Any]:
    """What a host with these devices says, each with (run, busy)."""
    said = [{"name": kind, "run": run, "busy": busy} for run, busy in devices]
    return {"devices": said, "waiting": [], "runs": 0, "load_ratio": 0.0, **told}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (host(FREE, FREE), host(FREE, RUN, RUN)),  # enough, beside more devices of which too few are free
        (host(FREE, FREE, FREE), host(FREE, FREE, BUSY)),
        (host(FREE, FREE), host(FREE, FREE, waiting=[T4])),
        (
            host(FREE, FREE),
            host(FREE, FREE, FREE, BUSY, waiting=[{"run": "x", "wants": "4"}]),
        ),  # who is first gets them
        (host(FREE, FREE, waiting=[{"run": "x", "wants": "9"}]), host(FREE, RUN)),  # whom this machine can never serve
        (host(FREE, FREE), host(FREE, FREE, runs=1)),
        (host(FREE, FREE, load_ratio=0.9), host(FREE, FREE, runs=1)),
        (host(FREE, FREE, load_ratio=0.1), host(FREE, FREE, load_ratio=0.2)),
        (host(FREE, RUN), host(RUN, BUSY, RUN)),  # neither has enough now
        (host(RUN, RUN), host(RUN, RUN, waiting=[T4, T4])),
    ],
)
def test_the_freest_takes_it_wherever_it_is_named(better: dict[str, Any], worse: dict[str, Any]) -> None:
    assert choose({"a": better, "b": worse}, A100S).host == "a"
    assert choose({"b": worse, "a": better}, A100S).host == "a"


def test_enough_free_devices_matter_more_than_everything_else() -> None:
    crowded = host(FREE, FREE, RUN, RUN, waiting=[T4], runs=9, load_ratio=3.0)

    assert choose({"a": host(FREE, RUN), "b": crowded}, TWO).host == "b"


def test_of_equals_the_first_that_is_named() -> None:
    assert choose({"b": host(), "a": host()}).host == "b"


def test_devices_of_another_kind_do_not_count() -> None:
    found = choose({"a": host(FREE, FREE, kind="Tesla T4"), "b": host(FREE, RUN)}, Accelerators(count=1, kind="a100"))

    assert found.host == "b"
    assert found.others == {"a": "has 0 such devices in all, and the run wants a100:1"}


def test_every_host_that_is_passed_over_is_told_with_its_reason() -> None:
    away = "cannot be reached: no SSH server listens"

    found = choose({"a": away, "b": host(FREE, FREE), "c": host(FREE, BUSY, runs=1, load_ratio=0.5)}, TWO)

    assert found.told("digits") == (
        f"digits goes to b: 2 of 2 devices free, 0 runs, load 0% (a: {away}; c: 1 of 2 devices free, 1 run, load 50%)"
    )


def test_where_none_is_left_all_reasons_are_told() -> None:
    found = choose({"a": "cannot be reached: it is off", "b": host(FREE)}, TWO)

    assert found == Choice(host=None, others=found.others)
    error = NowhereToRun(found)
    assert error.exit_code == 10
    assert "a: cannot be reached: it is off; b: has 1 such device in all, and the run wants 2" in str(error)
