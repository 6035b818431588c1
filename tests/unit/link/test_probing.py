"""What is measured of the way to a real sshd, with the limits that servers have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import HostUnreachable
from holdfast.link import probing, reuse, target
from holdfast.link.hosts import Measured
from tests.labs import sshd as lab

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def person() -> Iterator[tuple[str, Path]]:
    with lab.person() as made:
        yield made


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))


def probed(folder: Path, person: tuple[str, Path], **options: str) -> tuple[Measured, str]:
    """What a server with `options` lets us find, and its log."""
    with lab.sshd(folder, *person, options=options) as server:
        to = target.resolve("node", config=str(server.config))
        return asyncio.run(probing.probe(to, tell=lambda _: None, pings=3)), server.log


@pytest.mark.parametrize("most", [1, 3])
def test_the_sessions_that_a_server_allows_are_counted(tmp_path: Path, person: tuple[str, Path], most: int) -> None:
    measured, log = probed(tmp_path / "sshd", person, MaxSessions=str(most))

    assert (measured.sessions, measured.all_sessions) == (most, False)
    assert log.count("Accepted publickey") == 1
    assert measured.streamlocal is True


def test_a_server_that_refuses_channels_to_unix_sockets_is_seen(tmp_path: Path, person: tuple[str, Path]) -> None:
    measured, _ = probed(tmp_path / "sshd", person, AllowStreamLocalForwarding="no", MaxSessions="40")

    assert measured.streamlocal is False
    assert (measured.sessions, measured.all_sessions) == (probing.MOST_SESSIONS, True)
    assert 0 < measured.exchange_s < measured.login_s
    assert 0 < measured.trip_s < 5 and measured.loss_ratio < 1  # a ping that is late on a busy machine counts as lost


def test_a_slow_shell_is_told_from_a_long_way(tmp_path: Path, person: tuple[str, Path]) -> None:
    (person[1] / ".bashrc").write_text("sleep 0.3\n")
    try:
        measured, _ = probed(tmp_path / "sshd", person)
    finally:
        (person[1] / ".bashrc").unlink()

    assert 0.3 <= measured.shell_s < 30
    assert measured.trip_s < measured.shell_s


def test_a_host_that_lets_nobody_in_is_told(tmp_path: Path, person: tuple[str, Path]) -> None:
    with lab.sshd(tmp_path / "sshd", *person) as server:
        server.allowed.write_text("")
        with pytest.raises(HostUnreachable, match="takes none of our keys"):
            asyncio.run(probing.probe(target.resolve("node", config=str(server.config)), tell=lambda _: None))


def test_a_ping_that_was_sent_again_counts_as_lost() -> None:
    trip_s, jitter_s, loss_ratio = probing.weigh([0.01, 0.03, 0.01, 0.25], 5)

    assert trip_s == pytest.approx(0.02)
    assert jitter_s == pytest.approx((0.02 + 0.02 + 0.24) / 3)
    assert loss_ratio == pytest.approx(2 / 5)  # one late, one unanswered


STAT = "{pid} ({name}) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 20 0 1 0 1 1 1"


@pytest.mark.parametrize(
    ("name", "title", "expected"),
    [("sshd", "sshd: a [priv]", 10 + 26), ("sshd-session", "sshd-session: a [priv]", 36), ("sshd", "sshd -D", 10)],
)
def test_the_servers_processor_time_is_read(name: str, title: str, expected: int) -> None:
    said = [STAT.format(pid=7, name=name, ticks="4 3 2 1"), STAT.format(pid=6, name=name, ticks="5 6 7 8"), title]

    assert reuse.cpu_ticks("\n".join(said)) == expected
    assert reuse.cpu_ticks("") is None
    assert reuse.cpu_ticks(f"1 (bash) S 1\n{said[1]}\n{title}") is None
