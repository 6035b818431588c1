"""How the agent keeps a connection: renewed, shared or not, compressed, for how long; on a real sshd."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
from pathlib import Path

import pytest

from holdfast.link import hosts, mux, remote, target
from holdfast.link.client import Links, held
from holdfast.link.hosts import Settings
from holdfast.link.mux import End
from holdfast.units import Keepalive
from tests.labs import sshd as lab
from tests.labs.links import kill_agent
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_agent")]


def logins(server: lab.Sshd) -> int:
    return server.log.count("Accepted publickey")


def masters() -> list[str]:
    """Command lines of the masters that the agent's folder names."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            line = file.read_bytes().replace(b"\0", b" ").decode()
            if line.startswith("ssh ") and str(target.folder()) in line:
                lines.append(line)
    return lines


def test_a_connection_is_renewed_before_its_age_and_no_stream_breaks(tmp_path: Path) -> None:
    """A stream of bytes that takes longer than two lives of a connection; the first one takes nobody new by then."""
    with Links() as links:
        first = links.up("node", said=Settings(max_age_s=4.0))
        sent = hashlib.sha256()
        out = (tmp_path / "out").open("wb")
        read_end, write_end = os.pipe()

        async def ride() -> int:
            passenger = await mux.passenger(first.path, "cat", (read_end, out.fileno(), 2))
            os.close(read_end)
            return await passenger.wait()

        async def stream() -> int:
            riding = asyncio.get_running_loop().create_task(ride())
            paths = {first.path}
            while len(paths) < 3 or Path(first.path).exists():
                part = os.urandom(50_000)
                sent.update(part)
                await asyncio.get_running_loop().run_in_executor(None, os.write, write_end, part)
                with Links() as newcomer:
                    paths.add((await asyncio.to_thread(newcomer.up, "node", said=Settings(max_age_s=4.0))).path)
                await asyncio.sleep(0.05)
            os.close(write_end)
            return await asyncio.wait_for(riding, 20)

        status = asyncio.run(asyncio.wait_for(stream(), 60))
        out.close()

        assert status == 0
        assert hashlib.sha256((tmp_path / "out").read_bytes()).digest() == sent.digest()
    until(lambda: len(masters()) == 1, what=lambda: "\n".join(masters()))


def test_a_connection_through_a_forward_outlives_a_renewal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as behind:
        with Links() as links:
            first = links.up("node", said=Settings(max_age_s=2.0))
            port = links.forward(first.key, 0, End(port=behind.getsockname()[1]), keep=True)
        with socket.create_connection(("127.0.0.1", port)) as here, behind.accept()[0] as there:
            here.sendall(b"before")
            assert there.recv(6) == b"before"
            until(lambda: held()[0]["path"] != first.path)
            until(lambda: not Path(first.path).exists())  # it takes nobody new, and lives
            there.sendall(b"after")
            assert here.recv(5) == b"after"
        with Links() as links:
            links.unforward(port)
    until(lambda: held()[0]["older"] == 0)


def test_a_call_that_insists_on_a_keepalive_gets_a_connection_with_it(server: lab.Sshd) -> None:
    with Links() as links, Links() as other:
        first = other.up("node")
        second = links.up("node", said=Settings(keepalive=Keepalive(interval_s=7, count=4)))

        assert second.path != first.path
        assert links.every()[0]["keepalive"] == "7x4"
        assert any("ServerAliveInterval=7 -o ServerAliveCountMax=4" in line for line in masters())
        assert asyncio.run(mux.alive(first.path)) > 1
        assert links.up("node").path == second.path  # what nobody insists on changes nothing
    until(lambda: len(masters()) == 1)


def test_a_keepalive_of_the_environment_counts_without_any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_KEEPALIVE", "9x2")
    with Links() as links:
        links.up("node")
        assert links.every()[0]["keepalive"] == "9x2"


def test_a_host_that_is_not_shared_is_logged_in_to_by_each_call(server: lab.Sshd) -> None:
    hosts.update("node", Settings(multiplex=False))
    before = logins(server)
    with Links() as one, Links() as other:
        first, second = one.up("node"), other.up("node")
        assert first.path != second.path
        assert logins(server) == before + 2
        assert [remote.run(up, "exit 4", (0, 1, 2)) for up in (first, second)] == [4, 4]
    until(lambda: not masters())
    assert logins(server) == before + 2


def test_a_connection_that_is_not_kept_ends_with_its_last_user() -> None:
    hosts.update("node", Settings(persist_s=0.0))
    with Links() as watching:
        with Links() as one, Links() as other:
            one.up("node")
            other.up("node")
        until(lambda: not watching.every())
    until(lambda: not masters())


def test_compression_is_what_ssh_agrees_on(server: lab.Sshd) -> None:
    hosts.update("node", Settings(compression="on"))
    with Links() as links:
        up = links.up("node")
        assert links.every()[0]["options"]["Compression"] == "yes"
        plain = os.urandom(1) * 4_000_000

        async def pushed() -> int:
            with (target.folder() / "zeros").open("wb") as made:
                made.write(plain)
            with (target.folder() / "zeros").open("rb") as given:
                passenger = await mux.passenger(up.path, "wc -c >&2", (given.fileno(), 1, 2))
            return await passenger.wait()

        pid = asyncio.run(mux.alive(up.path))
        written = int(Path(f"/proc/{pid}/io").read_text().split("wchar: ")[1].split()[0])
        assert asyncio.run(pushed()) == 0
        after = int(Path(f"/proc/{pid}/io").read_text().split("wchar: ")[1].split()[0])
        assert after - written < len(plain) / 10


def test_what_a_killed_agent_left_is_ended_by_the_next(server: lab.Sshd) -> None:
    hosts.update("node", Settings(multiplex=False))  # nobody would come to the same socket again
    links = Links()
    links.up("node")
    kill_agent()
    links.close()

    with Links() as fresh:
        assert fresh.every() == []
    until(lambda: not masters())


def test_a_renewal_that_is_refused_leaves_the_connection_as_it_is(server: lab.Sshd) -> None:
    keys = server.allowed.read_text()
    with Links() as links:
        up = links.up("node")
        server.allowed.write_text("")
        try:
            same = links.up("node", said=Settings(keepalive=Keepalive(interval_s=6, count=2)))
        finally:
            server.allowed.write_text(keys)

        assert same.path == up.path
        assert remote.run(same, "exit 5", (0, 1, 2)) == 5
