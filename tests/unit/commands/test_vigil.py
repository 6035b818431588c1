"""What a person is told of the link below a call, and when a call gives it up."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.commands import remote, vigil
from holdfast.commands.remote import Asked
from holdfast.commands.vigil import Vigil
from holdfast.errors import HostUnreachable
from holdfast.service.client import Standing
from holdfast.service.streams import Stream


class Wire:
    """A machine behind a link in the state that a test says; nothing gets through."""

    host = "gpu-a"

    def __init__(self, state: str = "up") -> None:
        self.state = state
        self.looks = 0

    async def connect(self) -> Stream:
        raise ConnectionResetError("nothing came for 5 s")

    async def hang_up(self) -> None:
        """There is nothing."""

    def standing(self) -> str:
        self.looks += 1
        return self.state


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "LOOK_S", 0.01)
    monkeypatch.setattr(vigil, "TELL_S", 0.0)


async def looked(wire: Wire, times: int = 3) -> None:
    """Until the vigil has looked so often since now."""
    wanted = wire.looks + times
    while wire.looks < wanted:
        await asyncio.sleep(0.001)


def test_a_link_that_goes_and_comes_back_is_told_once_each_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    async def watch() -> None:
        wire = Wire()
        looking = asyncio.create_task(Vigil(wire, None).look())
        for wire.state in ("up", "suspect", "dead", "up", "up"):
            await looked(wire)
        looking.cancel()

    asyncio.run(watch())

    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "gpu-a: suspect for 0 s …\ngpu-a: back after 0 s\n")


def test_a_cut_that_is_over_at_once_is_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vigil, "TELL_S", 60.0)

    async def watch() -> None:
        wire = Wire()
        watcher = Vigil(wire, None)
        looking = asyncio.create_task(watcher.look())
        assert watcher.cut(Standing(0.0, "the master has hung up"))
        await looked(wire)
        assert watcher.cut(Standing(None))
        looking.cancel()

    asyncio.run(watch())

    assert capsys.readouterr().err == ""


class Deaf(Wire):
    """One that takes what is said to it, and never answers."""

    async def connect(self) -> Stream:
        await asyncio.Event().wait()
        raise AssertionError


def test_a_call_ends_with_the_patience_though_nothing_tells_that_the_connection_is_gone() -> None:
    with pytest.raises(HostUnreachable, match="gpu-a: the link is suspect, away for 0 s: nothing came from it"):
        remote.call(Deaf("suspect"), Asked(("ps",), patience_s=0.1))


def test_a_call_that_nobody_takes_ends_with_the_patience_though_the_link_is_up() -> None:
    with pytest.raises(HostUnreachable, match="gpu-a: the link is up, and nothing of ours has answered there for 0 s"):
        remote.call(Deaf("up"), Asked(("ps",), patience_s=0.1))


def test_patience_ends_and_what_lasts_has_no_end() -> None:
    assert Vigil(Wire("down"), 30.0).cut(Standing(29.0))
    assert not Vigil(Wire("down"), 30.0).cut(Standing(31.0))
    assert Vigil(Wire("down"), None).cut(Standing(86_400.0))


def test_a_call_that_gives_up_says_how_the_link_stands(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        HostUnreachable, match=r"gpu-a: the link is dead, away for 0 s: .*nothing came for 5 s"
    ) as ended:
        remote.call(Wire("dead"), Asked(("ps",), patience_s=0.1))

    assert ended.value.exit_code == 10
    assert capfd.readouterr().out == ""
