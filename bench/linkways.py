"""Ways to a host, each with what it can do there: ssh itself, asyncssh, paramiko, holdfast.

A way is a context manager that connects and yields its tasks, each a function to be timed: `command` runs `true`;
`call` asks the node's service whether it is there; `ping` the same to the server itself; `stream` reads what a command
writes; `upload` sends the payload to one that forgets it; `sync` brings the tree to a new folder, `unchanged` brings it
once more to where it is already; `first call` is one to a host that has nothing of ours. `upload/sftp` is an upload
whose row is called sftp.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

from holdfast.bundle import places
from holdfast.commands.reach import linked
from holdfast.link import mux, remote
from holdfast.link.channels import Connection
from holdfast.link.client import Links
from holdfast.link.target import users_config
from holdfast.service.client import Calls
from tests.labs.servers import process
from tests.waiting import until

Work: TypeAlias = Callable[[], object]
T = TypeVar("T")
FORGET = "cat >/dev/null"
REACHED_S = 60.0  # most of bringing holdfast to a node, and starting its service


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task before which something is done that does not count."""

    before: Work
    work: Work


Task: TypeAlias = "Work | Prepared"
Tasks: TypeAlias = Mapping[str, Task]


@dataclass(frozen=True, slots=True)
class Node:
    """A host under `alias` of an ssh configuration: how to reach it, and what is brought there.

    bare: another one, as far away, whose HOLDFAST_HOME may be removed.
    """

    alias: str
    bare: str
    config: Path
    port: int
    user: str
    key: Path
    known_hosts: Path
    inbox: Path  # a folder there that `user` may write to
    payload: Path
    tree: Path
    stream_bytes: int
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def spout(self) -> str:
        """A command that writes `stream_bytes`."""
        return f"head -c {self.stream_bytes} /dev/zero"

    def new_folder(self) -> str:
        """The path of a folder there that does not exist yet."""
        return f"{self.inbox}/{self.alias}-{next(self._numbers)}"


@dataclass(frozen=True, slots=True)
class Way:
    """Who connects, as the table calls it; `package` is what it needs besides OpenSSH."""

    title: str
    connect: Callable[[Node], contextlib.AbstractContextManager[Tasks]]
    package: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether its package is not installed here."""
        return bool(self.package) and find_spec(self.package) is None


# -- OpenSSH


@contextlib.contextmanager
def cold_ssh(node: Node) -> Iterator[Tasks]:
    """A connection for each command."""
    yield {"command": lambda: _run(["ssh", "-F", str(node.config), "-S", "none", node.alias, "true"])}


@contextlib.contextmanager
def shared_ssh(node: Node) -> Iterator[Tasks]:
    """ControlMaster: a process of ssh, sftp, rsync or tar for each task, over a connection that is there already."""
    path = node.payload.parent / f"master-{node.alias}"
    log = path.with_suffix(".log")
    base = ["-F", str(node.config), "-o", f"ControlPath={path}"]
    ssh = ["ssh", *base, node.alias]
    with process(["ssh", *base, "-M", "-N", "-T", "-o", "BatchMode=yes", node.alias], log) as master:
        until(lambda: path.exists() or master.poll() is not None, what=log.read_text)
        yield {
            "command": lambda: _run([*ssh, "true"]),
            "stream": lambda: _run([*ssh, node.spout]),
            "upload": lambda: _upload(ssh, node),
            "upload/sftp": lambda: _run(["sftp", "-q", "-b", "-", *base, node.alias], f"put {node.payload} /dev/null"),
            **_rsync_tasks(base, node),
            "sync/tar over ssh": lambda: _tar(ssh, node),
        }


def _upload(ssh: list[str], node: Node) -> None:
    with node.payload.open("rb") as payload:
        subprocess.run([*ssh, FORGET], stdin=payload, check=True)


def _rsync_tasks(base: list[str], node: Node) -> Tasks:
    if not shutil.which("rsync"):
        return {}

    def bring(there: str) -> None:
        _run(["rsync", "-a", "-e", shlex.join(["ssh", *base]), f"{node.tree}/", f"{node.alias}:{there}/"])

    brought = node.new_folder()
    bring(brought)
    return {"sync/rsync": lambda: bring(node.new_folder()), "unchanged/rsync": lambda: bring(brought)}


def _tar(ssh: list[str], node: Node) -> None:
    there = node.new_folder()
    with subprocess.Popen(["tar", "-C", str(node.tree), "-cf", "-", "."], stdout=subprocess.PIPE) as packing:
        subprocess.run([*ssh, f"mkdir {there} && tar -C {there} -xf -"], stdin=packing.stdout, check=True)


def _run(argv: list[str], given: str = "") -> None:
    """To its end; what it writes is read and dropped, as a pipe, not by the kernel. Raises CalledProcessError."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin as stdin:
            stdin.write(given.encode())
        _drain(child.stdout)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, argv)


def _drain(stream: IO[bytes]) -> None:
    while stream.read1(1 << 20):  # type: ignore[attr-defined]
        pass


# -- the libraries


@contextlib.contextmanager
def cold_asyncssh(node: Node) -> Iterator[Tasks]:
    """A connection for each command."""

    async def once() -> None:
        async with _asyncssh(node) as link:
            await link.run("true", check=True)

    with _loop() as run:
        yield {"command": lambda: run(once())}


@contextlib.contextmanager
def kept_asyncssh(node: Node) -> Iterator[Tasks]:
    """One connection for everything."""

    async def stream(link: Any) -> None:
        async with link.create_process(node.spout, encoding=None) as child:
            while await child.stdout.read(1 << 20):
                pass

    async def connected() -> Any:
        return await _asyncssh(node)

    with _loop() as run:
        link = run(connected())
        try:
            yield {
                "command": lambda: run(link.run("true", check=True)),
                "stream": lambda: run(stream(link)),
                "upload": lambda: run(link.run(FORGET, check=True, stdin=str(node.payload), encoding=None)),
            }
        finally:
            link.abort()
            run(link.wait_closed())


def _asyncssh(node: Node) -> Any:
    import asyncssh

    where = {"port": node.port, "username": node.user, "config": None}
    return asyncssh.connect("127.0.0.1", **where, client_keys=[str(node.key)], known_hosts=str(node.known_hosts))


@contextlib.contextmanager
def kept_paramiko(node: Node) -> Iterator[Tasks]:
    """One connection for everything."""
    import paramiko

    with paramiko.SSHClient() as client:
        client.load_host_keys(str(node.known_hosts))
        own = {"key_filename": str(node.key), "look_for_keys": False, "allow_agent": False}
        client.connect("127.0.0.1", port=node.port, username=node.user, **own)

        def command(text: str) -> None:
            _, out, _ = client.exec_command(text)
            while out.channel.recv(1 << 20):
                pass
            if out.channel.recv_exit_status():
                raise RuntimeError(f"{text} ended with {out.channel.recv_exit_status()}")

        def upload() -> None:
            with client.open_sftp() as sftp:
                sftp.put(str(node.payload), "/dev/null", confirm=False)

        yield {"command": lambda: command("true"), "stream": lambda: command(node.spout), "upload": upload}


# -- holdfast


@contextlib.contextmanager
def holdfast(node: Node) -> Iterator[Tasks]:
    """The agent's master, and through it the service on the node."""
    with contextlib.ExitStack() as stack:
        there, run = stack.enter_context(linked(node.alias, REACHED_S)), stack.enter_context(_loop())
        null = stack.enter_context(Path(os.devnull).open("r+b"))
        up, calls = there.up, Calls(there.connect)
        connection = run(_connected(up.path))
        run(calls.get("/ping"))  # from now on the service is there
        nothing = [null.fileno()] * 3

        def upload() -> None:
            with node.payload.open("rb") as payload:
                _well(remote.run(up, FORGET, [payload.fileno(), *nothing[1:]]))

        try:
            yield {
                "ping": lambda: run(connection.ping()),
                "call": lambda: run(calls.get("/ping")),
                "command": lambda: _well(remote.run(up, "true", nothing)),
                "command/holdfast exec, the verb": lambda: _run(_verb("exec", "--on", node.alias, "--", "true")),
                "stream": lambda: run(_stream(connection, node)),
                "upload": upload,
                "first call": stack.enter_context(_bringing(node)),
                **_sync_tasks(node),
            }
        finally:
            run(calls.close())
            run(connection.close())


@contextlib.contextmanager
def _bringing(node: Node) -> Iterator[Prepared]:
    """Over a connection that is up: what is ours is sent and unpacked, the service started and asked."""

    def clear() -> None:
        _well(remote.run(up, 'pkill -KILL -f "$HOLDFAST_HOME/bundles/"; rm -rf "$HOLDFAST_HOME"', nothing))
        places.forget(up.key)

    def call() -> None:
        with linked(node.bare, REACHED_S) as there, _loop() as run:
            calls = Calls(there.connect)
            run(calls.get("/ping"))
            run(calls.close())

    with Links() as links, Path(os.devnull).open("r+b") as null:
        up, nothing = links.up(node.bare, config=users_config(), within_s=REACHED_S), [null.fileno()] * 3
        yield Prepared(clear, call)


def _verb(*words: str) -> list[str]:
    return [sys.executable, "-m", "holdfast", *words]


def _sync_tasks(node: Node) -> Tasks:
    """The verb, interpreter's start included, as rsync is a program too; the first one also brings holdfast there."""

    def bring(there: str) -> None:
        _run(_verb("sync", str(node.tree), f"{node.alias}:{there}"))

    brought = node.new_folder()
    bring(brought)
    return {"sync/holdfast sync": lambda: bring(node.new_folder()), "unchanged/holdfast sync": lambda: bring(brought)}


async def _connected(path: str) -> Connection:
    return Connection(await mux.proxied(path))


async def _stream(connection: Connection, node: Node) -> None:
    channel = await connection.session()
    await channel.exec(node.spout)
    while await channel.read():
        pass
    await channel.wait()


def _well(status: int) -> None:
    if status:
        raise RuntimeError(f"the command ended with {status}")


@contextlib.contextmanager
def _loop() -> Iterator[Callable[[Coroutine[Any, Any, T]], T]]:
    """What runs a coroutine on a loop that stays, so that connections do."""
    loop = asyncio.new_event_loop()
    try:
        yield loop.run_until_complete
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


WAYS = (
    Way("ssh, cold", cold_ssh),
    Way("ssh, ControlMaster", shared_ssh),
    Way("asyncssh, cold", cold_asyncssh, "asyncssh"),
    Way("asyncssh, kept", kept_asyncssh, "asyncssh"),
    Way("paramiko, kept", kept_paramiko, "paramiko"),
    Way("holdfast", holdfast),
)
