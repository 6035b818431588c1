"""Calls through a master of OpenSSH to a real sshd: channels to the service's socket, and masters that die."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import random
from itertools import groupby
from pathlib import Path

import pytest

from holdfast.link import mux
from holdfast.link.channels import Connection
from holdfast.link.client import NeedsAuthentication
from holdfast.runs import RunDir
from holdfast.service.client import Calls, NoService, Standing
from holdfast.service.streams import through
from tests.labs import sshd as lab
from tests.unit.service.lab import Node

pytestmark = pytest.mark.e2e


class Masters:
    """A new one whenever somebody wants to reach the node."""

    def __init__(self, server: lab.Sshd, stack: contextlib.ExitStack) -> None:
        self._server, self._stack = server, stack
        self.path = ""
        self.connections: list[Connection] = []

    async def reach(self) -> Connection:
        self.path = self._stack.enter_context(lab.master(self._server))
        self.connections.append(Connection(await mux.proxied(self.path)))
        return self.connections[-1]

    async def close(self) -> None:
        for connection in self.connections:
            await connection.close()
        if self.path:
            await mux.terminate(self.path)


@contextlib.asynccontextmanager
async def masters(folder: Path):  # type: ignore[no-untyped-def]
    home = folder / "person"
    home.mkdir()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(lab.sshd(folder / "sshd", getpass.getuser(), home))
        found = Masters(server, stack)
        try:
            yield found
        finally:
            await found.close()


def test_a_stream_is_exact_though_its_masters_die(service: Node, run: RunDir, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(48 << 20)
    (tmp_path / "data").write_bytes(data)
    told: list[Standing] = []

    def watch(standing: Standing) -> bool:
        told.append(standing)
        return True

    async def main() -> int:
        async with masters(tmp_path) as there:
            with (tmp_path / "copy").open("wb") as copy:
                calls = Calls(through(there.reach, str(service.socket)), watch)
                argv = ["shell", "digits", "--", "cat", str(tmp_path / "data")]
                calling = asyncio.create_task(calls.call(argv, stdout=copy.fileno()))
                for part in (8 << 20, 24 << 20):
                    while os.fstat(copy.fileno()).st_size < part:
                        await asyncio.sleep(0.001)
                    await mux.terminate(there.path)
                return await calling

    assert asyncio.run(asyncio.wait_for(main(), 60)) == 0
    assert (tmp_path / "copy").read_bytes() == data
    assert [is_back for is_back, _ in groupby(standing.away_s is None for standing in told)] == [True, False] * 2 + [
        True
    ]


def test_questions_cost_a_round_trip_and_an_absent_service_is_told(service: Node, run: RunDir, tmp_path: Path) -> None:
    async def main() -> None:
        async with masters(tmp_path) as there:
            async with Calls(through(there.reach, str(service.socket))) as calls:
                assert (await calls.get("/ping"))["pid"] == service.who.pid
                assert [one["run"] for one in (await calls.get("/runs"))["runs"]] == ["digits"]
                assert len(there.connections) == 1
            nowhere = Calls(through(there.reach, str(tmp_path / "nothing.sock")))
            with pytest.raises(NoService):
                await nowhere.get("/ping")
            with pytest.raises(NoService):
                await nowhere.call(["ps"])

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_way_that_a_person_has_to_mend_is_not_tried_again(run: RunDir) -> None:
    tries = []

    async def reach() -> Connection:
        tries.append(1)
        raise NeedsAuthentication("gpu-a takes none of our keys")

    with pytest.raises(NeedsAuthentication, match="none of our keys"):
        asyncio.run(Calls(through(reach, "/nothing")).call(["ps"]))
    assert len(tries) == 1
