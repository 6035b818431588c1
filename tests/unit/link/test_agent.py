"""The link agent, started as a verb would start it, between a real sshd and its clients."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast import fsio, process
from holdfast.errors import HoldfastError, HostUnreachable, UsageError
from holdfast.link import agent, client, hosts, messages, mux, target
from holdfast.link.channels import Connection
from holdfast.link.client import Links, NeedsAuthentication, telling
from holdfast.link.hosts import Chosen, Settings
from holdfast.link.mux import End
from holdfast.link.place import Place
from tests.labs import sshd as lab
from tests.labs.links import holder, kill_agent
from tests.labs.servers import free_port
from tests.labs.servers import process as running
from tests.needs import need_program
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_agent")]


def masters() -> list[str]:
    """Command lines of the masters of this test's agent."""
    place = str(target.folder())
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[0] == b"ssh" and place in str(words):
                found.append(b" ".join(words).decode())
    return found


def test_clients_share_one_connection(server: lab.Sshd) -> None:
    with Links() as one, Links() as other:
        first = one.up("node", config=str(server.config))
        second = other.up("node", config=str(server.config))

        assert first.path == second.path
        assert len(masters()) == 1
        assert [(link["alias"], link["state"], link["users"]) for link in one.every()] == [("node", "up", 2)]
        assert asyncio.run(mux.alive(first.path)) > 1


def test_many_clients_at_once_start_one_agent(server: lab.Sshd) -> None:
    def ask() -> str:
        with Links() as links:
            return links.up("node", config=str(server.config)).path

    with ThreadPoolExecutor(8) as pool:
        assert len({future.result() for future in [pool.submit(ask) for _ in range(8)]}) == 1
    assert len(masters()) == 1
    assert (target.folder() / "agent.log").read_text() == ""  # nobody else has even tried


def test_a_link_goes_when_nobody_has_used_it_for_long_enough(server: lab.Sshd) -> None:
    with Links() as links:
        links.up("node", config=str(server.config), said=Settings(persist_s=0.5))
        time.sleep(2)  # in use, however long
        assert len(masters()) == 1
    until(lambda: not masters())


def test_a_refused_key_is_told_and_tried_again_when_asked(server: lab.Sshd) -> None:
    keys = server.allowed.read_text()
    server.allowed.write_text("")
    with Links() as links:
        with pytest.raises(NeedsAuthentication, match="takes none of our keys"):
            links.up("node", config=str(server.config))
        server.allowed.write_text(keys)
        assert links.up("node", config=str(server.config)).alias == "node"


def test_keys_are_asked_of_the_ssh_agent_of_who_came_last(
    server: lab.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that the link agent found at its own start goes with its login; another shell may name one long gone."""
    need_program("ssh-agent")
    config = tmp_path / "config"
    config.write_text(server.config.read_text().replace(f"IdentityFile {server.folder}/key", "IdentityFile none"))
    config.write_text(config.read_text().replace("IdentitiesOnly yes", "IdentitiesOnly no"))

    def log_in() -> None:
        with Links() as links:
            links.drop(links.up("node", config=str(config)).key)

    for name in ("one", "two"):
        path = tmp_path / name
        with running(["ssh-agent", "-D", "-a", str(path)], tmp_path / f"{name}.log"):
            until(path.is_socket)
            monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
            subprocess.run(["ssh-add", "-q", str(server.folder / "key")], check=True)
            log_in()
            for other in (str(tmp_path / "gone"), ""):
                monkeypatch.setenv("SSH_AUTH_SOCK", other)
                log_in()


def test_nobody_there_is_told_within_the_time(server: lab.Sshd, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(server.config.read_text().replace(f"Port {server.port}", f"Port {free_port()}"))

    with Links() as links, pytest.raises(HostUnreachable, match="no SSH server listens"):
        links.up("node", config=str(config))


def test_an_agent_that_is_killed_is_replaced_and_its_master_ended(server: lab.Sshd) -> None:
    with Links() as links:
        links.up("node", config=str(server.config))
    kill_agent()

    with Links() as links:
        up = links.up("node", config=str(server.config))
        assert asyncio.run(mux.alive(up.path)) > 1
        assert len(masters()) == 1


def test_dropping_ends_the_connection(server: lab.Sshd) -> None:
    with Links() as links:
        up = links.up("node", config=str(server.config))
        links.drop(up.key)
        assert masters() == []
        assert links.every() == []


def test_a_master_that_goes_is_told_as_the_state_of_its_link(server: lab.Sshd) -> None:
    with Links() as links:
        up = links.up("node", config=str(server.config))
        links.drop(up.key)
        with pytest.raises(HostUnreachable, match=r"node: the link is down: the master at .* is gone"), telling(up):
            asyncio.run(mux.alive(up.path))


def test_nonsense_is_answered(server: lab.Sshd) -> None:
    with Links() as links:
        links.up("node", config=str(server.config))
        for nonsense in ({"op": "dance"}, {}, {"op": "want"}):
            told = messages.request(agent.socket_path(), nonsense, timeout_s=5)
            assert not told["ok"]
        assert len(links.every()) == 1


def test_times_that_are_none_are_refused_and_hurt_nobody(server: lab.Sshd) -> None:
    with Links() as links:
        links.up("node", config=str(server.config))
        asked = {"op": "want", "alias": "node", "config": str(server.config), "asks": False, "asked_s": 0.0}
        for chosen, within_s in (({"persist_s": "soon"}, 5), ({"persist_s": -1.0}, 5), ({}, "NaN"), ({}, [])):
            asked |= {"chosen": {**Chosen().encoded(), **chosen}, "within_s": within_s}
            assert "nobody understands" in messages.request(agent.socket_path(), asked, timeout_s=5)["error"]
        assert len(links.every()) == 1


def test_messages_of_any_size_are_whole_in_both_directions(server: lab.Sshd) -> None:
    """Many answers at once on one connection that nobody reads meanwhile; one that is too long ends it."""
    with socket.socket(socket.AF_UNIX) as client:
        with Links():
            client.connect(str(agent.socket_path()))
        client.settimeout(20)
        for _ in range(5):
            messages.send(client, {"op": "x" * 200_000})
        for _ in range(5):
            assert len(messages.receive(client)["error"]) > 200_000
        with pytest.raises(OSError):
            messages.send(client, {"op": "x" * 300_000})
            messages.receive(client)


def test_a_channel_is_not_taken_for_a_passenger_with_its_number(server: lab.Sshd) -> None:
    """Once with each number that a passenger's session might have."""

    async def work(path: str, port: int) -> None:
        given, kept = os.pipe()
        ridden = await mux.passenger(path, "cat", (given, 1, 2))
        leaving = Connection(await mux.proxied(path))
        for channel in [await leaving.tcp("127.0.0.1", port) for _ in range(20)]:
            await channel.close()
        await leaving.close()
        os.close(kept)
        os.close(given)
        assert await ridden.wait() == 0

    with Links() as links, socket.create_server(("127.0.0.1", 0), backlog=20) as behind:
        up = links.up("node")
        pid = asyncio.run(mux.alive(up.path))
        asyncio.run(work(up.path, behind.getsockname()[1]))
        assert asyncio.run(mux.alive(up.path)) == pid


def test_an_agent_that_nobody_finds_any_more_ends_and_another_one_begins(server: lab.Sshd) -> None:
    with Links() as links:
        links.up("node", config=str(server.config))
        who = holder()
        agent.socket_path().unlink()  # somebody tidies /tmp
        assert who is not None
        until(lambda: not process.alive(who))
        assert masters() == []

    with Links() as links:
        assert links.up("node", config=str(server.config)).trip_s >= 0


def test_a_connection_that_nobody_watches_any_more_is_given_up_and_told(server: lab.Sshd) -> None:
    """The file with what ssh said cannot be read: a fault that nobody has foreseen."""
    with Links() as links:
        up = links.up("node", config=str(server.config))
        said = Path(f"{up.path}.log")
        said.unlink()
        said.mkdir()
        os.kill(asyncio.run(mux.alive(up.path)), signal.SIGKILL)
        until(lambda: not links.every())
        assert "IsADirectoryError" in (target.folder() / "agent.log").read_text()

        assert links.up("node", config=str(server.config)).path != up.path


def test_an_agent_leaves_nothing_behind(server: lab.Sshd) -> None:
    with Links() as links:
        links.up("node", config=str(server.config))
    who = holder()
    assert who is not None
    process.send_signal(who, signal.SIGTERM)
    until(lambda: not process.alive(who))

    assert not target.folder().exists()


def test_an_agent_that_is_told_to_end_ends_what_its_clients_hold(server: lab.Sshd) -> None:
    """Each connection here ends with its client, which is ended at the same time."""
    hosts.update("node", Settings(multiplex=False))
    with Links() as one, Links() as other:
        one.up("node")
        other.forward(other.up("node").key, 0, End(port=1))
        who = holder()
        assert who is not None
        process.send_signal(who, signal.SIGTERM)
        until(lambda: not process.alive(who))

    assert masters() == []
    assert not target.folder().exists()


def test_what_a_killed_agent_has_left_goes_when_another_one_starts_a_day_later(
    server: lab.Sshd, tmp_path: Path
) -> None:
    old, young, live = (target.make_folder().with_name(f"link-{name}{os.getpid():07x}") for name in "abc")
    for folder in (old, young, live):
        folder.mkdir(mode=0o700)
        (folder / "agent.log").write_text("it was killed\n")
    lock = fsio.lock_file(live / "agent.lock")
    try:
        for folder in (old, live):
            os.utime(folder, (0, 0))
        argv = ["ssh", "-F", str(server.config), "-N", "-T", "-M", "-S", str(old / "0123456789ab.0"), "node"]
        with running(argv, server.folder / "left.log") as child:
            until(lambda: {path.name for path in old.iterdir()} == {"agent.log", "0123456789ab.0"})  # ssh renames it
            os.utime(old, (0, 0))
            with Links():
                until(lambda: not old.exists())
            until(lambda: child.poll() is not None)
        assert young.exists()
        assert live.exists()
    finally:
        lock.close()
        for folder in (old, young, live):
            shutil.rmtree(folder, ignore_errors=True)


def test_a_name_that_is_none_is_the_callers_mistake() -> None:
    with Links() as links, pytest.raises(UsageError, match="'-x' is not the name of a host"):
        links.up("-x")


def test_an_agent_ends_what_a_killed_one_has_left(server: lab.Sshd) -> None:
    """Masters do not always outlive their agent: one of ours stands for one that does."""
    left = str(target.make_folder() / "0123456789ab.0")
    argv = ["ssh", "-F", str(server.config), "-N", "-T", "-M", "-S", left, "node"]
    with running(argv, server.folder / "left.log") as child:
        until(lambda: Path(left).exists())
        with Links() as links:
            assert links.every() == []
            until(lambda: child.poll() is not None)
        assert not Path(left).exists()


def test_who_waits_for_a_link_in_vain_waits_for_a_bounded_time(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(f"Host node\n  HostName 127.0.0.1\n  Port {free_port()}\n")

    async def wait() -> float:
        to = target.resolve("node", config=str(config))
        place = Place(to, to.key, Chosen(persist_s=0.0), itertools.count())
        place.current.master.want()
        began_s = time.monotonic()
        try:
            with pytest.raises(HostUnreachable, match=r"node is (down|connecting|dead)"):
                await place.connection(1.0)
            return time.monotonic() - began_s
        finally:
            await place.end()

    assert 0.9 < asyncio.run(wait()) < 30.0


def test_another_key_is_another_link(server: lab.Sshd, tmp_path: Path) -> None:
    """A name whose key is refused keeps nobody from the same place under a name with the right one."""
    block, key = server.config.read_text(), tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    stranger = block.replace("Host node", "Host stranger").replace(f"{server.folder}/key", str(key))
    server.config.write_text(block + stranger + block.replace("Host node", "Host same"))

    with Links() as links:
        with pytest.raises(NeedsAuthentication, match="stranger takes none of our keys"):
            links.up("stranger", config=str(server.config))
        up = links.up("node", config=str(server.config))
        assert links.up("same", config=str(server.config)).path == up.path
        with pytest.raises(NeedsAuthentication, match="stranger takes none of our keys"):
            links.up("stranger", config=str(server.config))


def test_a_configuration_may_hold_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(b"Host node\n  HostName 127.0.0.1\n  IdentityFile /home/f\xfcr/key\n")

    assert len(target.resolve("node", config=str(tmp_path / "config")).key) == 12


def test_an_older_agent_that_nobody_uses_is_replaced(server: lab.Sshd) -> None:
    older = "from holdfast.link import agent; agent.PROTOCOL = 1; raise SystemExit(agent.main())"
    subprocess.run([sys.executable, "-c", older], check=True, stdin=subprocess.DEVNULL)
    before = holder()
    with Links() as links:
        assert links.up("node", config=str(server.config)).alias == "node"
    assert before is not None
    assert not process.alive(before)


def test_an_older_agent_in_use_and_a_newer_one_are_told(server: lab.Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    with Links() as links:
        links.up("node", config=str(server.config))
        monkeypatch.setattr(client, "PROTOCOL", agent.PROTOCOL + 1)
        with pytest.raises(HoldfastError, match="of an older holdfast, and in use for node"):
            Links()
        monkeypatch.setattr(client, "PROTOCOL", agent.PROTOCOL - 1)
        with pytest.raises(HoldfastError, match="of a newer holdfast"):
            Links()
        assert links.every()[0]["state"] == "up"
