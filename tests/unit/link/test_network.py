"""A network that goes without a word, or forgets, under real masters: root only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from holdfast.bundle import probing as node_probing
from holdfast.bundle.making import first_made, made
from holdfast.link import agent, hosts, mux, probing, remote, states, target
from holdfast.link.channels import Connection
from holdfast.link.client import Links
from holdfast.link.mux import MasterGone
from tests.children import ended
from tests.labs import netns
from tests.labs import sshd as lab
from tests.labs.links import own_links
from tests.unit.bundle.test_probing import probe
from tests.waiting import until

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
        await connection.ping()
        with network.is_cut(), pytest.raises(MasterGone, match="no answer"):
            await connection.ping(within_s=0.5)
        return await connection.ping(within_s=30)

    assert through(network, server, work) < 30


def test_a_firewall_forgets_a_connection_that_is_silent_for_too_long(network: netns.Network, server: lab.Sshd) -> None:
    async def work(kept: Connection) -> None:
        with lab.master(server) as path:
            silent = Connection(await mux.proxied(path))
            network.forget_after(3)
            await silent.ping()
            for _ in range(17):  # more than 4 s, never silent for as much as 3
                await kept.ping()
                await asyncio.sleep(0.25)
            await kept.ping()
            with pytest.raises(MasterGone, match="no answer"):
                await silent.ping(within_s=1.5)
            await silent.close()

    try:
        through(network, server, work)
    finally:
        network.forget_after(432_000)


def test_another_route_is_a_reason_to_ask_at_once(
    network: netns.Network, server: lab.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was carried elsewhere; nothing else would make the agent ask for an hour."""
    for name in ("BUSY_PING_S", "IDLE_PING_S"):
        monkeypatch.setattr(states, name, 3600.0)
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))

    def looked() -> None:
        with Links() as links:
            links.up("node", config=str(server.config))

            def trip_s() -> float:
                (link,) = links.every()
                return float(link["trip_s"])

            before_s = until(trip_s)
            network.add_route("192.0.2.0/24")
            until(lambda: trip_s() != before_s)

    async def work() -> None:
        serving = asyncio.get_running_loop().create_task(agent.Agent().serve(listener))
        try:
            await asyncio.to_thread(looked)
        finally:
            serving.cancel()
            await asyncio.wait([serving])

    target.make_folder()
    with netns.entered(network.client), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(agent.socket_path()))
        listener.listen()
        listener.setblocking(False)
        asyncio.run(work())
    shutil.rmtree(target.folder())


@contextlib.contextmanager
def slow_way(folder: Path, patch: pytest.MonkeyPatch, up_bytes_s: float) -> Iterator[tuple[netns.Network, Links]]:
    """Also inside the client's namespace, with an agent that has a link to `node`."""
    with (
        netns.network(folder, up_bytes_s=up_bytes_s) as slow,
        lab.person() as (user, home),
        netns.sshd(slow, folder / "sshd", user, home) as server,
        own_links(folder / "home", patch),
        netns.entered(slow.client),
        Links() as links,
    ):
        patch.setenv("HOLDFAST_SSH_CONFIG", str(server.config))
        links.up("node")
        yield slow, links


@contextlib.contextmanager
def uploading(folder: Path) -> Iterator[None]:
    """More than there is time for."""
    argv = [sys.executable, "-m", "holdfast", "exec", "--on", "node", "--", "cat >/dev/null"]
    (folder / "data").write_bytes(os.urandom(3_000_000))
    with (folder / "data").open("rb") as data, ended(subprocess.Popen(argv, stdin=data)):
        yield


def test_an_upload_over_a_slow_way_is_not_death_and_death_in_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings lie for seconds behind what a passenger sends: the master would be ended 9.6 s after its beginning."""
    seen = list[str]()
    with slow_way(tmp_path, monkeypatch, 60_000) as (slow, links), uploading(tmp_path):
        before, end_s = links.every()[0], time.monotonic() + 11
        while time.monotonic() < end_s:
            seen.append(links.every()[0]["state"])
            time.sleep(0.1)
        assert set(seen) <= {"up", "suspect"}  # a machine that has no time for the way brings nothing either
        assert seen.count("up") > len(seen) / 2
        assert links.every()[0]["path"] == before["path"]
        assert links.every()[0]["trip_s"] < 1
        with slow.is_cut():
            assert links.changed(before["key"], "up", within_s=30)["state"] != "up"


@pytest.mark.soak
def test_a_command_waits_for_its_turn_behind_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer of the host takes some 15 s: ssh and the system have taken 130 kB and more before."""
    with slow_way(tmp_path, monkeypatch, 12_000) as (_, links), uploading(tmp_path):
        before, end_s = links.every()[0], time.monotonic() + 8
        until(lambda: time.monotonic() > end_s)
        (done,) = remote.everywhere(["node"], "echo done", within_s=90)
        assert (done.out, done.error) == (b"done\n", "")
        assert done.seconds > 20
        assert links.every()[0]["path"] == before["path"]


@pytest.mark.soak
def test_a_verb_on_a_link_that_died_in_silence_ends_in_time_and_says_how_the_link_stands(
    network: netns.Network, server: lab.Sshd, fetched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them finds a link that is `up`: nothing has told yet that it is not."""

    def holdfast(*words: str) -> tuple[int, str, float]:
        began_s = time.monotonic()
        argv = [sys.executable, "-m", "holdfast", *words]
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        return done.returncode, done.stderr, time.monotonic() - began_s

    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(server.config))
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    (tmp_path / "bundles").symlink_to(fetched)
    (tmp_path / "any").mkdir()
    pythons = node_probing.choose("node", probe(tmp_path / "any"), sys.version_info[:2])
    first_made("node", list(pythons), lambda _: None, made)  # no registry is reached from inside
    with own_links(tmp_path, monkeypatch), netns.entered(network.client):
        assert holdfast("ps", "--on", "node")[0] == 0
        with network.is_cut():
            code, said, took_s = holdfast("status", "node:x", "--timeout", "5s")
            assert (code, took_s < 5 + 7) == (10, True), (said, took_s)
            assert re.search(r"error: node: the link is (suspect|dead|down|connecting), away for [5-9] s: ", said), said
            code, said, took_s = holdfast("status", "node:x", "--timeout", "2s")
            assert (code, took_s < 2 + 7) == (10, True), (said, took_s)
            assert "node cannot be reached: " in said
        until(lambda: holdfast("ps", "--on", "node")[0] == 0, within_s=60)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("limit_s", "cliffs_s", "lives"),
    [(3, [4.5, 1.0, 20.0], 2), pytest.param(20, [60.0, 30.0, 10.0, 15.0], 10, marks=pytest.mark.soak)],
)
def test_the_limit_of_silence_is_found_and_the_keepalive_outlives_it(
    network: netns.Network,
    server: lab.Sshd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit_s: int,
    cliffs_s: list[float],
    lives: int,
) -> None:
    told = list[str]()
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    to = target.resolve("node", config=str(server.config))
    network.forget_after(limit_s)
    try:
        with netns.entered(network.client):
            idle = asyncio.run(probing.idle_limit(to, 0.01, cliffs_s, tell=told.append))
            measured = hosts.Measured(at_s=0.0, trip_s=0.001, idle=idle)
            keepalive, why = hosts.automatic(measured)
            chosen = hosts.choose([], measured)
            assert asyncio.run(alive_after(to, chosen, lives * limit_s))
    finally:
        network.forget_after(432_000)

    alive_s = max(cliff_s for cliff_s in cliffs_s if cliff_s < limit_s)
    dead_s = min(cliff_s for cliff_s in cliffs_s if cliff_s > limit_s)
    assert (idle.alive_s, idle.dead_s) == (alive_s, dead_s)
    assert told[-2:] == [f"silent for {alive_s:g} s: it answers", f"silent for {dead_s:g} s: no answer"]
    assert tuple(told) == idle.evidence
    third_s = max(1, alive_s // 3)
    assert (keepalive.interval_s, f"a third of {alive_s:g} s of silence is {third_s:g} s" in why) == (third_s, True)


async def alive_after(to: target.Target, chosen: hosts.Chosen, silence_s: float) -> bool:
    """Whether a connection with these options, on which nobody says anything but ssh itself, answers then."""
    async with probing.alone(to, chosen) as login:
        await asyncio.sleep(silence_s)
        return await login.connection.ping() > 0


def test_a_long_way_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    with (
        netns.network(tmp_path, delay_s=0.03) as slow,
        lab.person() as (user, home),
        netns.sshd(slow, tmp_path / "sshd", user, home) as server,
        netns.entered(slow.client),
    ):
        to = target.resolve("node", config=str(server.config))
        measured = asyncio.run(probing.probe(to, tell=lambda _: None, pings=5))

    assert 0.06 <= measured.trip_s < 2
    assert measured.exchange_s > 0.06
    assert measured.login_s > measured.exchange_s + 2 * 0.06
