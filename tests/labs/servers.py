"""Object stores of this machine: started once a session, each with an empty bucket, ended by their pid."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.needs import need_program
from tests.waiting import until

KEY, SECRET = "AKIAHOLDFASTTEST0001", "0123456789abcdef0123456789abcdef01234567"
BUCKET = "holdfast-test"


@dataclass(frozen=True, slots=True)
class Server:
    """An S3 server on loopback. `conditional`: it refuses a PUT with If-None-Match on what is there."""

    name: str
    port: int
    conditional: bool
    key: str = KEY
    secret: str = SECRET

    def environ(self, *, port: int = 0, home: Path) -> dict[str, str]:
        """What a client needs to know; `port` of a proxy in between, `home` without files of anybody."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            "HOME": str(home),
        }


def free_port() -> int:
    """One that nobody listens on now, below those that the system gives to whoever connects somewhere."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def process(argv: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A child that lives as long as the block."""
    with log.open("ab") as out:
        child = subprocess.Popen(argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=env)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def answers(port: int) -> bool:
    """Whether an HTTP server talks there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Server]:
    """`rclone serve s3`: takes If-None-Match and overwrites all the same, answers 200 to a Range."""
    program, port = need_program("rclone"), free_port()
    (folder / "data" / BUCKET).mkdir(parents=True)
    argv = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    with process([*argv, "--config", os.devnull, str(folder / "data")], folder / "rclone.log"):
        until(lambda: answers(port), what="rclone serve s3")
        yield Server("rclone", port, conditional=False)


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[Server]:
    """moto: right about conditions, checks neither credentials nor checksums."""
    program, port = need_program("moto_server"), free_port()
    with process([program, "-H", "127.0.0.1", "-p", str(port)], folder / "moto.log"):
        until(lambda: answers(port), what="moto")
        _make_bucket(port)
        yield Server("moto", port, conditional=True)


@contextlib.contextmanager
def timeless() -> Iterator[tuple[Server, Callable[[str, float], int]]]:
    """moto in this process, and what makes every object whose key ends so older by so many seconds; how many."""
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()

    def age(ending: str, seconds: float) -> int:
        found = [
            key
            for account in s3_backends.values()
            for backend in account.values()
            for name, key in backend.buckets[BUCKET].keys.items()
            if name.endswith(ending)
        ]
        for key in found:
            key.last_modified -= dt.timedelta(seconds=seconds)
        return len(found)

    try:
        _make_bucket(port)
        yield Server("moto", port, conditional=True), age
    finally:
        server.stop()


def _make_bucket(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    auth = f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    connection.request("PUT", f"/{BUCKET}", headers={"Authorization": auth})
    assert connection.getresponse().status == 200
    connection.close()
