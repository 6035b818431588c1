"""control.sock: the supervisor's HTTP interface for everything that wants to know or ask.

Requests are answered in threads of their own. What only reads is answered there; what asks for something is handed to
the supervisor's loop and answered when that has done it. Sizes and times are bounded: a request is hostile input.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from holdfast.errors import HoldfastError, UsageError
from holdfast.journal import page

BODY_BYTES = 64 * 1024
ANSWER_S = 20.0
IDLE_S = 30.0
POSTS = ("/save", "/stop", "/kill", "/resume")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for the supervisor's loop; it puts the answer, or the error, into `answer`."""

    path: str
    body: dict[str, Any]
    answer: queue.Queue[dict[str, Any] | HoldfastError] = field(default_factory=lambda: queue.Queue(1))


class Control(socketserver.ThreadingUnixStreamServer):
    """Listens at `path`; `asks` holds what the loop must do, and `wakeup` becomes readable when there is something."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, *, status: Callable[[], dict[str, Any]], journal: Path) -> None:
        self.status, self.journal = status, journal
        self.asks: queue.SimpleQueue[Ask] = queue.SimpleQueue()
        self.wakeup, self._ring = socket.socketpair()
        self.wakeup.setblocking(False)
        self._ring.setblocking(False)
        path.unlink(missing_ok=True)
        super().__init__(str(path), Handler)
        path.chmod(0o600)
        threading.Thread(target=self.serve_forever, name="control", daemon=True).start()

    def hand_over(self, ask: Ask) -> None:
        """Put `ask` before the loop."""
        self.asks.put(ask)
        with contextlib.suppress(BlockingIOError):
            self._ring.send(b"!")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""

    def stop(self) -> None:
        """Close the socket and remove its file."""
        self.shutdown()
        self.server_close()
        Path(str(self.server_address)).unlink(missing_ok=True)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Control
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S

    def do_GET(self) -> None:
        """`/status`, `/journal?from=BYTE`, `/ping`."""
        target = urlsplit(self.path)
        if target.path == "/status":
            self._answer(200, self.server.status())
        elif target.path == "/journal":
            self._journal(parse_qs(target.query).get("from", ["0"])[0])
        elif target.path == "/ping":
            self._answer(200, {"ok": True, "pid": os.getpid()})
        else:
            self._refuse(404, f"there is no {target.path[:100]!r} here", "/status, /journal or /ping")

    def do_POST(self) -> None:
        """`/save`, `/stop`, `/kill`, `/resume`, with a JSON object or nothing as body."""
        path = urlsplit(self.path).path
        if path not in POSTS:
            self._refuse(404, f"there is no {path[:100]!r} here", " ".join(POSTS))
            return
        try:
            body = self._body()
        except ValueError as error:
            self._refuse(400, str(error), "")
            return
        ask = Ask(path, body)
        self.server.hand_over(ask)
        try:
            answer = ask.answer.get(timeout=ANSWER_S)
        except queue.Empty:
            answer = HoldfastError(f"the supervisor did not answer within {ANSWER_S:g} s")
        if isinstance(answer, HoldfastError):
            code = 400 if isinstance(answer, UsageError) else 409
            self._answer(code, {"error": str(answer), "hint": answer.hint, "exit_code": answer.exit_code})
        else:
            self._answer(200, answer)

    def _body(self) -> dict[str, Any]:
        told = self.headers.get("Content-Length", "0")
        if not told.isdigit() or int(told) > BODY_BYTES:
            self.close_connection = True
            raise ValueError(f"a body of {told[:20]} bytes; at most {BODY_BYTES} are read")
        try:
            body = json.loads(self.rfile.read(int(told)) or b"{}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise ValueError("the body is not a JSON object")
        return body

    def _journal(self, start: str) -> None:
        if not start.isdigit():
            self._refuse(400, f"from={start[:20]!r} is not a byte offset", "")
            return
        self._answer(200, page(self.server.journal, int(start)))

    def _refuse(self, code: int, message: str, hint: str) -> None:
        self._answer(code, {"error": message, "hint": hint, "exit_code": UsageError.exit_code})

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_args: Any) -> None:
        """node.log is for bugs."""
