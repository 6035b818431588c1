"""Who goes on with a run, and when: decided without a store, and read from one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from holdfast.checkpoint.lease import Lease
from holdfast.mirror.fence import GONE_S, Fence, Owner, tell_to_stop
from holdfast.mirror.succession import BUSY_S, LEAVE_S, Look, Next, decide, look
from holdfast.spec.fields import LEAST_FAILOVER_S
from holdfast.stores import connect
from tests.labs.clock import clock
from tests.labs.servers import BUCKET

FAILOVER_S = 600.0


def after(age_s: float | None, *, begun: bool = True, **facts: Any) -> Next:
    given = {"failover_s": FAILOVER_S, "free": True, "watched_s": math.inf, "rested_s": 0.0, **facts}
    return decide(Look(begun=begun, age_s=age_s), **given)


@pytest.mark.parametrize(("age_s", "then"), [(0.0, Next.WATCH), (599.9, Next.WATCH), (600.0, Next.TAKE)])
def test_silence_for_as_long_as_was_said_is_an_end(age_s: float, then: Next) -> None:
    assert after(age_s) is then


def test_one_whose_devices_are_not_free_lets_the_others_go_first() -> None:
    assert after(FAILOVER_S, free=False) is Next.WATCH
    assert after(FAILOVER_S + BUSY_S, free=False) is Next.TAKE


def test_after_a_store_was_away_the_machine_has_time_to_give_a_sign_again() -> None:
    assert after(9999.0, watched_s=GONE_S - 1) is Next.WATCH
    assert after(9999.0, watched_s=GONE_S) is Next.TAKE


def test_a_run_at_rest_is_left_alone_and_given_up_after_a_day() -> None:
    assert after(None) is Next.REST
    assert after(None, begun=False) is Next.WATCH  # it may be about to begin
    assert after(None, rested_s=LEAVE_S) is after(None, begun=False, rested_s=LEAVE_S) is Next.LEAVE


def test_nobody_may_take_over_before_the_fence_lets_him() -> None:
    assert LEAST_FAILOVER_S >= GONE_S


def test_a_look_tells_a_run_that_lives_from_one_at_rest_and_from_none(tmp_path: Path) -> None:
    store = connect(str(tmp_path / "mirror"), {})
    fence, own = (
        Fence(store, Owner("gpu-a", "/runs/x")),
        Lease(term=1, claim="a", attempt=1, base=None, owner={}, time_s=1),
    )

    assert look(store) == Look(begun=False)
    fence.hold(own, [])
    fence.beat(own)
    seen = look(store)
    assert (seen.begun, seen.host) == (True, "gpu-a")
    assert seen.age_s is not None and 0 <= seen.age_s < 60
    fence.rest(own)
    assert look(store) == Look(begun=True)


def test_a_run_that_was_told_to_stop_is_nobodys_however_silent_it_is(tmp_path: Path) -> None:
    store, own = (
        connect(str(tmp_path / "mirror"), {}),
        Lease(term=1, claim="a", attempt=1, base=None, owner={}, time_s=1),
    )
    Fence(store, Owner("gpu-a", "/runs/x")).hold(own, [])
    Fence(store, Owner("gpu-a", "/runs/x")).beat(own)

    tell_to_stop(store)

    assert look(store).stopped
    assert decide(look(store), failover_s=0.0, free=True, watched_s=math.inf, rested_s=0.0) is Next.LEAVE


SKEWED = """
import os, sys
from pathlib import Path
from holdfast.checkpoint.lease import Lease
from holdfast.mirror.fence import Fence, Owner
from holdfast.mirror.succession import decide, look
from holdfast.stores import connect
from tests.labs.clock import clock
from tests.labs.servers import BUCKET

def after():
    seen = look(connect(url, os.environ))
    return decide(seen, failover_s=600.0, free=True, watched_s=600.0, rested_s=0.0).value

url, clock = sys.argv[1], Path(os.environ["CLOCK_FILE"])
fence = Fence(connect(url, os.environ), Owner("gpu-a", "/runs/x"))
own = Lease(term=1, claim="a", attempt=1, base=None, owner={}, time_s=1)
fence.hold(own, [])
said = []
for theirs_s, ours_s, silent_s in ((-3600, 3600, 0), (3600, -3600, 0), (-3600, 3600, 601), (3600, -3600, 601)):
    clock.write_text(str(theirs_s))
    fence.beat(own)
    sign = Path(url, "leases", "000001.alive")
    if silent_s and sign.exists():
        os.utime(sign, (sign.stat().st_mtime - silent_s,) * 2)
    clock.write_text(str(ours_s))
    said.append(after() if sign.exists() or not silent_s else "")
print(said)
"""


@pytest.mark.parametrize("kind", ["directory", "moto"])
def test_clocks_two_hours_apart_neither_hand_a_run_over_early_nor_never(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    own, url, environ = clock(tmp_path), str(tmp_path / "mirror"), {}
    if kind == "moto":
        server = request.getfixturevalue("moto")
        url, environ = f"s3://{BUCKET}/{uuid.uuid4()}", server.environ(home=tmp_path)

    argv = [sys.executable, "-c", SKEWED, url]
    done = subprocess.run(argv, env={**os.environ, **environ, **own.env}, capture_output=True, text=True, timeout=60)

    never, over = ["watching"] * 2, ["taking over"] * 2
    assert done.stdout == f"{never + (over if kind == 'directory' else ['', ''])}\n", done.stderr
