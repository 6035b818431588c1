"""A ProxyCommand that takes so many bytes from ssh and then waits, for as long as a file is there.

    python gate.py HOST PORT MOST_BYTES FILE

What goes through it cannot end before a test has done to it what it wants, however slow the test is, and it ends with
ssh.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from pathlib import Path

LOOK_MS = 20


def lines(most_bytes: int, file: Path) -> str:
    """For a host in a client's configuration."""
    return f"  ProxyCommand {sys.executable} -S {__file__} %h %p {most_bytes} {file}\n"


def _down(there: socket.socket) -> None:
    while data := there.recv(1 << 16):
        os.write(1, data)
    os._exit(0)


def _up(there: socket.socket, most_bytes: int, closed: Path) -> None:
    passed, left = 0, select.poll()
    left.register(0, 0)  # tells that ssh has gone, though there is something to read
    while data := os.read(0, 1 << 16):
        there.sendall(data)
        passed += len(data)
        while passed >= most_bytes and closed.exists():
            if left.poll(LOOK_MS):
                return


if __name__ == "__main__":
    host, port, most, name = sys.argv[1:]
    connected = socket.create_connection((host, int(port)))
    threading.Thread(target=_down, args=(connected,), daemon=True).start()
    _up(connected, int(most), Path(name))
