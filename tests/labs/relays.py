"""A relay as a process, what lies between it and its clients, and targets that say what they got."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.children import ended
from tests.labs.servers import free_port, process
from tests.needs import need_program
from tests.waiting import until

TOKEN = "0123456789abcdef-a-token-of-the-tests"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_BEGUN: list[subprocess.Popen[bytes]] = []  # clients that nobody has waited for yet


@dataclass(frozen=True, slots=True)
class Relay:
    """A `holdfast relay serve` that listens."""

    port: int
    child: subprocess.Popen[bytes]
    path: Path

    @property
    def log(self) -> str:
        """What it has said."""
        return self.path.read_text()

    def url(self, port: int = 0) -> str:
        """For a client, perhaps through a `port` before it."""
        scheme = "wss" if "wss://" in self.log else "ws"
        return f"{scheme}://127.0.0.1:{port or self.port}/ssh"


@contextlib.contextmanager
def relay(folder: Path, *words: str, port: int = 0, token: str = TOKEN) -> Iterator[Relay]:
    """Serves on loopback with the command line's `words`, until the block ends."""
    folder.mkdir(exist_ok=True)
    path = folder / "relay.log"
    path.write_text("")
    argv = [sys.executable, "-m", "holdfast", "relay", "serve", "--listen", f"127.0.0.1:{port}", *words]
    with process(argv, path, env=environ(token)) as child:
        until(lambda: " may go to " in path.read_text() or child.poll() is not None, what=path.read_text)
        found = re.search(r"listening on .*:(\d+)$", path.read_text(), re.MULTILINE)
        assert found is not None, path.read_text()
        yield Relay(int(found[1]), child, path)
        if child.poll() is None:  # no session of a test that has ended is worth a grace
            child.send_signal(signal.SIGTERM)
            child.send_signal(signal.SIGTERM)


def environ(token: str = TOKEN, **more: str) -> dict[str, str]:
    """Ours, without proxies and with the token."""
    ours = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**ours, "HOLDFAST_RELAY_TOKEN": token, **more}


def connecting(url: str, target: str, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A `holdfast relay connect` with pipes, as ssh starts it; for use within `clients`."""
    host, _, port = target.rpartition(":")
    argv = [sys.executable, "-m", "holdfast", "relay", "connect", *words, url, host, port]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child: subprocess.Popen[bytes] = subprocess.Popen(argv, env=env or environ(), bufsize=0, **pipes)  # type: ignore[call-overload]
    _BEGUN.append(child)
    return child


@contextlib.contextmanager
def clients() -> Iterator[None]:
    """Whoever was connected within the block does not outlive it."""
    try:
        yield
    finally:
        with contextlib.ExitStack() as stack:
            while _BEGUN:
                stack.enter_context(ended(_BEGUN.pop()))


class Loop:
    """An event loop in a thread of its own, for servers that a test talks to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it there and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def close(self) -> None:
        """End everything on it."""
        self.do(self._cancelled())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _cancelled(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were closed meanwhile say good-bye


class Cutter:
    """A TCP proxy that cuts: when it is told to, or after each `every_bytes`, `cuts` times."""

    def __init__(self, port: int, *, every_bytes: int = 0, cuts: int = 0) -> None:
        self._to, self._every_bytes, self._most = port, every_bytes, cuts
        self._passed = self.cuts = self.connections = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._mute: set[asyncio.StreamWriter] = set()
        self._refusing = False
        self._loop = Loop()
        self._server = self._loop.do(asyncio.start_server(self._handle, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection."""
        self._loop.do(self._cut())

    def refuse(self, refusing: bool) -> None:
        """From now on, whether every connection is reset, those of now too."""
        self._refusing = refusing
        if refusing:
            self.cut()

    def silence(self) -> None:
        """Swallow what comes over the connections of now; nobody is told. Later ones work."""
        self._mute |= self._open

    def close(self) -> None:
        """No longer there."""
        self._loop.do(closed(self._server))
        self.cut()
        self._loop.close()

    async def _cut(self) -> None:
        self.cuts += 1
        for writer in self._open:
            writer.transport.abort()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._refusing:
            writer.transport.abort()
            return
        try:
            there, away = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, away}
        try:
            await asyncio.gather(self._pass(reader, away), self._pass(there, writer))
        finally:
            for each in (writer, away):
                self._open.discard(each)
                each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if writer in self._mute:
                    continue
                writer.write(data)
                await writer.drain()
                self._passed += len(data)
                if self.cuts < self._most and self._passed >= (self.cuts + 1) * self._every_bytes:
                    await self._cut()
            writer.write_eof()


@contextlib.contextmanager
def cutter(port: int, *, every_bytes: int = 0, cuts: int = 0) -> Iterator[Cutter]:
    """One that lives as long as the block."""
    between = Cutter(port, every_bytes=every_bytes, cuts=cuts)
    try:
        yield between
    finally:
        between.close()


@contextlib.contextmanager
def target(handler: Handler) -> Iterator[str]:
    """A server on loopback, as the word by which a relay knows it."""
    loop = Loop()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
            writer.close()
        except OSError:
            writer.close()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise

    server = loop.do(asyncio.start_server(handle, "127.0.0.1", 0))
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.do(closed(server))
        loop.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says what it hears, until that ends."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hears everything, to its end, and only then says its SHA-256."""
    found = hashlib.sha256()
    while data := await reader.read(1 << 16):
        found.update(data)
    writer.write(found.hexdigest().encode())
    await writer.drain()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key."""
    folder.mkdir(exist_ok=True)
    cert, key = folder / "cert.pem", folder / "key.pem"
    argv = [need_program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-nodes", "-days", "2", "-subj", "/CN=relay", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*argv, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


@contextlib.contextmanager
def nginx(folder: Path, to: int) -> Iterator[tuple[int, Path]]:
    """nginx with TLS that passes what is below /a/prefix/ to port `to`: its port and its certificate."""
    found = "/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else need_program("nginx")
    cert, key = certificate(folder)
    port = free_port()
    inner = (
        f"listen 127.0.0.1:{port} ssl; ssl_certificate {cert}; ssl_certificate_key {key};\n"
        f"location /a/prefix/ {{ proxy_pass http://127.0.0.1:{to}/; proxy_http_version 1.1;\n"
        "  proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;\n"
        "  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }"
    )
    places = "".join(f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy"))
    rest = "".join(f"{name}_temp_path {folder}/{name};\n" for name in ("fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {places}{rest} server {{ {inner} }} }}\n"
    )
    with process([found, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")], folder / "nginx.log"):
        until(lambda: listens(port), what=(folder / "nginx.log").read_text)
        yield port, cert


@contextlib.contextmanager
def tinyproxy(folder: Path, user: str, password: str) -> Iterator[tuple[int, Path]]:
    """An HTTP proxy that takes CONNECT from those who have the password: its port and its log."""
    folder.mkdir(exist_ok=True)
    port, log = free_port(), folder / "tinyproxy.log"
    (folder / "tinyproxy.conf").write_text(
        f'Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 20\nLogFile "{log}"\nLogLevel Connect\n'
        f"Allow 127.0.0.1\nBasicAuth {user} {password}\n"
    )
    argv = [need_program("tinyproxy"), "-d", "-c", str(folder / "tinyproxy.conf")]
    with process(argv, folder / "out.log"):
        until(lambda: listens(port), what=(folder / "out.log").read_text)
        yield port, log


def listens(port: int) -> bool:
    """Whether somebody takes connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def closed(server: asyncio.Server) -> None:
    """Takes no more connections."""
    server.close()
