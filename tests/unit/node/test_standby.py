"""What stands by for a run of another machine: one look and what follows, and the process that looks."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast import process, stores
from holdfast.checkpoint.lease import Lease
from holdfast.commands import standby as verbs
from holdfast.errors import LeaseHeld, UsageError
from holdfast.mirror import fence
from holdfast.mirror.fence import Fence, Owner, Superseded
from holdfast.mirror.succession import LEAVE_S, LOOK_S, REST_S
from holdfast.node.standby import BLIND, Order, Standby, Watch, every
from holdfast.runs import RunDir
from tests.fake_nvidia import FakeNvidia
from tests.labs.servers import BUCKET, Server

SECRET = "hush-4711-hush"
OWN = Lease(term=1, claim="a", attempt=1, base=None, owner={}, time_s=1.0)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing that a test leaves standing by outlives it."""
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for place in every():
        place.end()


def ordered(url: str, *secrets: str) -> tuple[Standby, Order]:
    place = Standby("digits")
    order = Order(run="digits", url=url, failover_s=90.0, cwd="/", env={}, secret_names=secrets, since_s=1.0)
    place.keep(order)
    return place, order


def watching(mirror: Path, take: Callable[[], RunDir]) -> tuple[Standby, Watch]:
    place, order = ordered(str(mirror))
    return place, Watch(place, order, lambda: stores.connect(str(mirror), {}), take, lambda: True)


def alive_on(mirror: Path, *, age_s: float = 0.0) -> Fence:
    """Somebody holds the run there and gave a sign of life so long ago."""
    fence = Fence(stores.connect(str(mirror), {}), Owner("gpu-a", "/runs/digits"))
    fence.hold(OWN, [])
    fence.beat(OWN)
    sign = mirror / "leases" / "000001.alive"
    os.utime(sign, (sign.stat().st_mtime - age_s,) * 2)
    return fence


def never() -> RunDir:
    pytest.fail("nobody is to take it over")  # which is no Exception, that it would survive


def state(place: Standby) -> dict[str, object]:
    found: dict[str, object] = json.loads((place.root / "state.json").read_text())
    return found


def test_while_there_are_signs_of_life_it_looks_and_tells_of_them(tmp_path: Path) -> None:
    place, watch = watching(tmp_path / "nas", never)
    alive_on(tmp_path / "nas", age_s=50)

    assert watch.once() == LOOK_S
    told = state(place)
    assert told["state"] == "watching"
    assert 49 < float(str(told["looked_s"])) - float(str(told["alive_s"])) < 60


def test_who_loses_the_run_to_another_one_stands_by_as_before(tmp_path: Path) -> None:
    def lose() -> RunDir:
        raise Superseded("nas", "another machine has taken term 2 of this run")

    place, watch = watching(tmp_path / "nas", lose)
    alive_on(tmp_path / "nas", age_s=100)

    assert watch.once() == LOOK_S
    assert (state(place)["state"], "term 2" in str(state(place)["why"])) == ("watching", True)


def test_once_the_run_goes_on_here_nobody_stands_by(tmp_path: Path) -> None:
    place, watch = watching(tmp_path / "nas", lambda: RunDir(tmp_path / "digits"))
    alive_on(tmp_path / "nas", age_s=100)

    assert watch.once() is None
    assert not place.root.exists()


def test_a_mirror_that_cannot_be_read_proves_nothing_and_neither_does_its_return(tmp_path: Path) -> None:
    mirror = tmp_path / "mount" / "nas"
    place, watch = watching(mirror, never)

    assert watch.once() == LOOK_S
    assert state(place)["state"] == BLIND
    mirror.parent.mkdir()
    alive_on(mirror, age_s=9999)
    assert watch.once() == LOOK_S
    assert state(place)["state"] == "watching"


def test_a_run_at_rest_is_looked_at_rarely(tmp_path: Path) -> None:
    place, watch = watching(tmp_path / "nas", never)
    alive_on(tmp_path / "nas", age_s=9999).rest(OWN)

    assert watch.once() == REST_S
    assert state(place)["state"] == "at rest"


def test_its_process_is_one_has_the_secrets_in_memory_alone_and_ends_when_told(tmp_path: Path) -> None:
    alive_on(tmp_path / "nas")
    place, _ = ordered(str(tmp_path / "nas"), "TOKEN")

    place.start({"TOKEN": SECRET})

    holder = place.holder()
    assert holder is not None and process.alive(holder)
    with pytest.raises(LeaseHeld):
        place.start({"TOKEN": SECRET})
    needle = SECRET.encode()
    for name in ("environ", "cmdline"):
        assert needle not in Path(f"/proc/{holder.pid}/{name}").read_bytes()
    for path in place.root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a draft that has taken the place of its file since
            assert needle not in path.read_bytes(), path
    place.end()
    assert not process.alive(holder)
    assert not place.root.exists()


def test_after_a_reboot_those_that_need_no_secret_stand_by_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alive_on(tmp_path / "nas")
    place, _ = ordered(str(tmp_path / "nas"))

    assert verbs.again() == 0
    assert place.holder() is not None
    assert verbs.again() == 0  # it does so already
    place.end()
    ordered(str(tmp_path / "nas"), "TOKEN")
    assert verbs.again() == 1
    assert "secrets are missing: TOKEN" in capsys.readouterr().err
    assert (place.holder(), place.state()["state"]) == (None, "needs secrets")


def begun(url: str, **env: str) -> dict[str, object]:
    told = {"url": url, "failover_s": 90.0, "env": env, "secret_names": [], "accelerators": ""}
    return verbs.begin(Standby("digits"), told)


def test_where_a_store_does_not_enforce_creation_nobody_stands_by(rclone: Server, tmp_path: Path) -> None:
    answer = begun(f"s3://{BUCKET}/standby", **rclone.environ(home=tmp_path))

    assert (answer["standing"], answer["unfenced"]) == (False, True)
    assert list(every()) == []


def test_a_mirror_that_cannot_be_used_from_here_is_told(tmp_path: Path) -> None:
    answer = begun(str(tmp_path / "no" / "nas"))

    assert answer["standing"] is False
    assert "it cannot use the mirror" in str(answer["why"])


def test_one_name_stands_for_one_run(home: Path, tmp_path: Path) -> None:
    assert begun(str(tmp_path / "nas"))["standing"] is True
    assert begun(str(tmp_path / "nas"))["standing"] is True  # ordered again
    assert "another run called digits" in str(begun(str(tmp_path / "other"))["why"])
    (home / "runs" / "digits").mkdir(parents=True)
    assert "there is a run digits already" in str(begun(str(tmp_path / "nas"))["why"])


def test_one_that_could_not_begin_at_once_has_no_free_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeNvidia(tmp_path / "driver")
    monkeypatch.setenv("PATH", driver.env["PATH"])
    order = Order(run="digits", url="", failover_s=90.0, cwd="/", env={}, accelerators=f"{driver.kind}:2")

    assert verbs._is_free(order)
    driver.compute({1: os.getpid()})
    assert not verbs._is_free(order)
    assert verbs._is_free(replace(order, accelerators=""))
    driver.tell("fails", "the driver is not loaded")
    assert not verbs._is_free(order)


def test_whoever_is_told_to_stop_a_run_tells_its_mirror_with_the_secrets_that_it_alone_has(
    moto: Server, tmp_path: Path
) -> None:
    url, environ = f"s3://{BUCKET}/{uuid.uuid4()}", moto.environ(home=tmp_path)
    secret = {"AWS_SECRET_ACCESS_KEY": environ.pop("AWS_SECRET_ACCESS_KEY")}
    place, order = ordered(url, *secret)
    place.keep(replace(order, env=environ))
    place.start(secret)

    assert verbs.stop(place) == {"told": True, "why": ""}

    assert fence.is_told_to_stop(stores.connect(url, {**environ, **secret}))
    assert (place.holder(), place.root.exists()) == (None, False)
    assert verbs.stop(place) == {"told": False, "why": ""}


def test_where_nobody_looks_any_more_the_mirror_is_told_all_the_same(tmp_path: Path) -> None:
    place, _ = ordered(str(tmp_path / "nas"))

    assert verbs.stop(place) == {"told": True, "why": ""}
    assert fence.is_told_to_stop(stores.connect(str(tmp_path / "nas"), {}))


@pytest.mark.parametrize("runs_already", [False, True])
def test_who_cannot_tell_the_mirror_says_why_and_stands_by_no_more(tmp_path: Path, runs_already: bool) -> None:
    mirror = tmp_path / "nas" if runs_already else tmp_path / "no" / "nas"
    place, _ = ordered(str(mirror))
    place.start({})
    if runs_already:
        (tmp_path / "home" / "runs" / "digits").mkdir(parents=True)

    answer = verbs.stop(place)

    assert answer["told"] is False
    assert ("it goes on there now" if runs_already else str(mirror)) in str(answer["why"])
    assert list(every()) == []


def test_a_run_that_was_told_to_stop_has_nobody_who_stands_by(tmp_path: Path) -> None:
    place, watch = watching(tmp_path / "nas", never)
    alive_on(tmp_path / "nas", age_s=9999)
    fence.tell_to_stop(stores.connect(str(tmp_path / "nas"), {}))

    assert watch.once() is None
    assert not place.root.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../runs", "/etc", "a/b"])
@pytest.mark.parametrize("verb", ["begin", "stop", "end", "serve"])
def test_what_is_no_name_is_no_folder_to_be_ended(home: Path, name: str, verb: str) -> None:
    ordered("nas")

    with pytest.raises(UsageError, match="is not the name of a run"):
        verbs.main([verb, name])

    assert [place.run for place in every()] == ["digits"]


def test_who_has_the_run_by_now_does_not_stand_by_for_it(home: Path, tmp_path: Path) -> None:
    place, watch = watching(tmp_path / "nas", never)
    alive_on(tmp_path / "nas", age_s=9999)
    (home / "runs" / "digits").mkdir(parents=True)
    (home / "runs" / "digits" / "plan.json").touch()

    assert watch.once() is None
    assert not place.root.exists()


def test_while_there_are_signs_of_life_nobody_looks_at_the_devices(tmp_path: Path) -> None:
    place, order = ordered(str(tmp_path / "nas"))
    asked = list[bool]()
    watch = Watch(
        place, order, lambda: stores.connect(str(tmp_path / "nas"), {}), never, lambda: asked.append(True) or True
    )
    alive_on(tmp_path / "nas", age_s=50)

    assert watch.once() == LOOK_S
    assert asked == []


def test_the_day_of_rest_begins_with_the_last_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, watch = watching(tmp_path / "nas", never)
    fence = alive_on(tmp_path / "nas")
    began_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began_s + LEAVE_S)
    assert watch.once() == LOOK_S

    fence.rest(OWN)
    assert watch.once() == REST_S
    monkeypatch.setattr(time, "monotonic", lambda: began_s + 2 * LEAVE_S)

    assert watch.once() is None
    assert not place.root.exists()
