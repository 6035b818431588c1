"""An HTTP proxy between a client and a store that breaks what it is told to break, and counts."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

CHUNK = 1 << 16
FAULTS = ("500", "429", "reset", "slow", "cut", "lost")


@dataclass
class Proxy:
    """`fault(method, path, number of the request)` says what becomes of a request, None for nothing.

    500, 429: answered here. reset: the connection breaks at once. slow: the answer comes in drops. cut: half of the
    upload reaches the store. lost: the store does its work, its answer does not arrive. flip: one byte of the upload
    arrives as another one.
    """

    upstream: int
    fault: Callable[[str, str, int], str | None] = lambda method, path, number: None
    port: int = 0
    requests: Counter[str] = field(default_factory=Counter)  # by method
    puts: list[str] = field(default_factory=list)  # paths of uploads that arrived whole
    down: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str) -> int:
        with self.lock:
            self.requests[method] += 1
            return sum(self.requests.values())

    def put_arrived(self, path: str) -> None:
        with self.lock:
            self.puts.append(path)


class _Handler(socketserver.BaseRequestHandler):
    """One request, then the connection ends."""

    def handle(self) -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            self._handle(proxy)

    def _handle(self, proxy: Proxy) -> None:
        head, rest = self._head()
        if not head:
            return
        method, path = head.split(b" ", 2)[:2]
        fault = proxy.fault(method.decode(), path.decode(), proxy.count(method.decode()))
        if proxy.down or fault == "reset":
            self._break()
        elif fault in ("500", "429"):
            self._swallow(head, rest)
            self.request.sendall(f"HTTP/1.1 {fault} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        else:
            self._forward(proxy, head, rest, fault)
            if method == b"PUT" and fault != "cut":
                proxy.put_arrived(path.decode())

    def _head(self) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.request.recv(CHUNK)
            if not piece:
                return b"", b""
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        return head, rest

    def _swallow(self, head: bytes, rest: bytes) -> None:
        left = _length(head) - len(rest)
        while left > 0:
            left -= len(self.request.recv(CHUNK)) or left

    def _forward(self, proxy: Proxy, head: bytes, rest: bytes, fault: str | None) -> None:
        with socket.create_connection(("127.0.0.1", proxy.upstream), timeout=60) as store:
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            store.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n")
            store.sendall(rest if fault != "flip" or not rest else bytes([rest[0] ^ 1]) + rest[1:])
            left, most = _length(head) - len(rest), _length(head) // 2
            while left > 0:
                if fault == "cut" and left < most:
                    self._break()
                    return
                piece = self.request.recv(CHUNK)
                if not piece:
                    return
                store.sendall(piece if fault != "flip" else bytes([piece[0] ^ 1]) + piece[1:])
                left -= len(piece)
            while piece := store.recv(CHUNK):
                if fault == "lost":
                    continue
                if fault == "slow":
                    time.sleep(0.002)  # the fault itself
                self.request.sendall(piece)
            if fault == "lost":
                self._break()

    def _break(self) -> None:
        """RST in place of FIN."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Breaking is what this is for."""


@contextlib.contextmanager
def between(upstream: int) -> Iterator[Proxy]:
    """A proxy in front of the server on port `upstream`."""
    proxy = Proxy(upstream)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.proxy = proxy  # type: ignore[attr-defined]
        proxy.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
