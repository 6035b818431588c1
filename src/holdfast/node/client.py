"""Ask a run's supervisor over control.sock, or its files when nobody listens."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Any

from holdfast.errors import HoldfastError, received
from holdfast.node import status as from_files
from holdfast.runs import RunDir, is_ours

ANSWER_BYTES = 16 << 20


class NotLive(HoldfastError):
    """Nobody listens: the run is over, was never started, or its machine was."""

    def __init__(self, run: str) -> None:
        super().__init__(f"run {run!r} has no supervisor", hint=f"holdfast resume {run} starts it again")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def call(
    run: RunDir, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = 5.0
) -> dict[str, Any]:
    """One request. Raises NotLive when nobody listens, and what the supervisor refused as the error it is."""
    if not is_ours(run.runtime):
        raise NotLive(run.id)  # and nobody else's socket is taken for ours
    link = _Connection(str(run.runtime / "control.sock"), timeout_s)
    try:
        link.request(method, path, json.dumps(body or {}), {"Content-Type": "application/json"})
        answer = link.getresponse()
        told = json.loads(answer.read(ANSWER_BYTES))
    except TimeoutError:
        raise HoldfastError(f"the supervisor of {run.id!r} did not answer within {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException):
        raise NotLive(run.id) from None
    finally:
        link.close()
    if answer.status >= 400:
        raise received(told)
    return dict(told)


def status(run: RunDir) -> dict[str, Any]:
    """The `status --json` object, from the supervisor or else from files. Raises OSError, ValueError."""
    try:
        return call(run, "GET", "/status")
    except NotLive:
        return from_files.status(run, now_s=time.time())
