"""A network that goes without a word, or forgets, under real masters: root only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from holdfast.link import mux
from holdfast.link.channels import Connection
from holdfast.link.mux import MasterGone
from tests.labs import netns
from tests.labs import sshd as lab

T = TypeVar("T")
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[netns.Network]:
    with netns.network(tmp_path_factory.mktemp("network")) as made:
        yield made


@pytest.fixture(scope="module")
def server(network: netns.Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Sshd]:
    folder = tmp_path_factory.mktemp("sshd")
    with lab.person() as (user, home), netns.sshd(network, folder, user, home) as running:
        yield running


def through(network: netns.Network, server: lab.Sshd, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
    """What `work` makes of a connection through a master in the client's namespace."""

    async def connected(path: str) -> T:
        connection = Connection(await mux.proxied(path))
        try:
            return await asyncio.wait_for(work(connection), 60)
        finally:
            await connection.close()

    with netns.entered(network.client), lab.master(server) as path:
        return asyncio.run(connected(path))


def test_what_is_sent_while_the_network_is_cut_arrives_when_it_is_back(
    network: netns.Network, server: lab.Sshd
) -> None:
    async def work(connection: Connection) -> float:
        await connection.ping(within_s=5)
        with network.is_cut(), pytest.raises(MasterGone, match="no answer"):
            await connection.ping(within_s=0.5)
        return await connection.ping(within_s=10)

    assert through(network, server, work) < 10


def test_a_firewall_forgets_a_connection_that_is_silent_for_too_long(network: netns.Network, server: lab.Sshd) -> None:
    async def work(connection: Connection) -> None:
        network.forget_after(1)
        for _ in range(8):  # 2 s, never silent for one
            await connection.ping(within_s=5)
            await asyncio.sleep(0.25)
        await asyncio.sleep(2.5)
        with pytest.raises(MasterGone, match="no answer"):
            await connection.ping(within_s=1.5)

    try:
        through(network, server, work)
    finally:
        network.forget_after(432_000)


def test_a_way_that_takes_longer(tmp_path: Path) -> None:
    async def work(connection: Connection) -> list[float]:
        return [await connection.ping(within_s=5) for _ in range(5)]

    with (
        netns.network(tmp_path, delay_s=0.03) as slow,
        lab.person() as (user, home),
        netns.sshd(slow, tmp_path / "sshd", user, home) as server,
    ):
        began_s = time.monotonic()
        trips = through(slow, server, work)

    assert 0.06 <= min(trips) < 0.2
    assert time.monotonic() - began_s < 30
