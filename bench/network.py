"""A connection that takes time, and a server that says back what it is told, each a process of its own.

    python -m bench.network delay PORT SECONDS   # carries both ways to PORT of loopback, every byte so much later
    python -m bench.network echo [PATH]          # on a unix socket, else on a port of loopback

The first line of output is the port or the path it listens on. Threads that sleep, and no event loop: those of Python
wait in whole milliseconds.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Queue

READ_BYTES = 64 << 10
UNDER_WAY = 1024  # reads of one direction that may be on their way at a time
ROOT = Path(__file__).parents[1]


@contextmanager
def delayed(port: int, trip_s: float) -> Iterator[int]:
    """A port that is `port` of loopback, so far away; the port itself for no distance."""
    if not trip_s:
        yield port
        return
    with _started("delay", str(port), str(trip_s / 2)) as where:
        yield int(where)


@contextmanager
def echo() -> Iterator[str]:
    """A server on the port that is yielded, which says back what it is told."""
    with _started("echo") as where:
        yield where


def trip_s(port: int, *, rounds: int = 50) -> float:
    """Median seconds of one byte to an echo on `port` of loopback and back, without any SSH."""
    times = []
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(rounds):
            began_s = time.perf_counter()
            link.sendall(b".")
            link.recv(1)
            times.append(time.perf_counter() - began_s)
    return statistics.median(times)


@contextmanager
def _started(*words: str) -> Iterator[str]:
    argv = [sys.executable, "-m", "bench.network", *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        try:
            assert child.stdout is not None
            yield child.stdout.readline().strip()
        finally:
            child.terminate()


def main() -> int:
    what, *words = sys.argv[1:]
    sys.setswitchinterval(0.0005)  # a direction that is busy must not hold up the other
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if what == "echo":
                threading.Thread(target=_say_back, args=(client,), daemon=True).start()
            else:
                _carry_both_ways(client, int(words[0]), float(words[1]))


def _say_back(client: socket.socket) -> None:
    with client, suppress(OSError):
        while told := client.recv(READ_BYTES):
            client.sendall(told)


def _carry_both_ways(client: socket.socket, port: int, late_s: float) -> None:
    server = socket.create_connection(("127.0.0.1", port))
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for source, sink in ((client, server), (server, client)):
        under_way: Queue[tuple[float, bytes]] = Queue(UNDER_WAY)
        threading.Thread(target=_take, args=(source, under_way, late_s), daemon=True).start()
        threading.Thread(target=_deliver, args=(sink, under_way), daemon=True).start()


def _take(source: socket.socket, under_way: Queue[tuple[float, bytes]], late_s: float) -> None:
    data = b"."
    while data:
        try:
            data = source.recv(READ_BYTES)
        except OSError:
            data = b""
        under_way.put((time.monotonic() + late_s, data))


def _deliver(sink: socket.socket, under_way: Queue[tuple[float, bytes]]) -> None:
    """Until the end of the other side, which is passed on; bytes to one who has left are dropped."""
    while True:
        due_s, data = under_way.get()
        time.sleep(max(0.0, due_s - time.monotonic()))
        if not data:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            return
        with suppress(OSError):
            sink.sendall(data)


if __name__ == "__main__":
    sys.exit(main())
