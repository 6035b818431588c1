"""What the link agent and its clients say to each other: JSON objects on a stream, each behind its length.

A stream, because macOS has no unix sockets that keep messages apart.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.link import wire
from holdfast.link.wire import Malformed, Reader


def encoded(message: Mapping[str, Any]) -> bytes:
    """As it is sent."""
    return wire.framed(json.dumps(message, separators=(",", ":")).encode())


def decoded(raw: bytes) -> dict[str, Any]:
    """Of what came behind the length. Raises ValueError."""
    message = json.loads(raw)
    if not isinstance(message, dict):
        raise ValueError(f"a message is a JSON object, not {raw[:40]!r}")
    return message


def send(connected: socket.socket, message: Mapping[str, Any]) -> None:
    """Raises OSError."""
    connected.sendall(encoded(message))


def receive(connected: socket.socket) -> dict[str, Any]:
    """The next one. Raises ConnectionResetError at the end, ValueError, and OSError as the socket does."""
    size = Reader(_exactly(connected, 4)).u32()
    if size > wire.MOST_BYTES:
        raise Malformed(f"a message of {size} bytes")
    return decoded(_exactly(connected, size))


def request(path: Path, message: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """One message to whoever listens at `path`, one back. Raises OSError, ValueError."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(timeout_s)
        connected.connect(str(path))
        send(connected, message)
        return receive(connected)


def _exactly(connected: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connected.recv(size - len(parts))
        if not part:
            raise ConnectionResetError("the other side hung up")
        parts += part
    return bytes(parts)
