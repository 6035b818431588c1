"""The archiver's end of shim.sock: slots come over it, and go back over it when the shim is another one."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from holdfast import process
from holdfast.errors import HoldfastError
from holdfast.heartbeat import Page
from holdfast.runs import RunDir

ANSWER_S = 5.0


class ShimLink:
    """A connection to the shim that said hello. Non-blocking from then on."""

    def __init__(self, run: RunDir) -> None:
        """Raises OSError when no shim listens."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.sock.settimeout(ANSWER_S)
            self.sock.connect(str(run.runtime / "shim.sock"))
            process.send(self.sock, {"op": "hello", "role": "archiver"})
            self.hello: dict[str, Any] = process.receive(self.sock)[0]
            self.sock.setblocking(False)
        except BaseException:
            self.sock.close()
            raise

    def offer(self, rank: int, fds: list[int]) -> None:
        """Let a new shim have the slots that an earlier one made. Raises OSError."""
        process.send(self.sock, {"op": "offer", "rank": rank}, fds)

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message with its descriptors, None when there is none yet. Raises ConnectionError at the end."""
        try:
            return process.receive(self.sock)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def connect(run: RunDir, *, alone: bool) -> ShimLink | None:
    """A link to the shim that lives, else to one we start; None when neither works now."""
    try:
        return ShimLink(run)
    except OSError:
        pass  # none listens: start one
    try:
        process.start_shim(run, alone=alone)
        return ShimLink(run)
    except (HoldfastError, OSError) as error:  # LeaseHeld: somebody else was quicker, and is about to listen
        print(f"archiver: no shim yet: {error}", file=sys.stderr)
        return None


def ranks_live(run: RunDir) -> bool:
    """Whether any process that wrote a heartbeat page of this run still runs."""
    for path in (run.runtime / "pages").glob("rank-*"):
        try:
            page = Page(path)
        except OSError:
            continue
        pid, start_ticks = page.get("pid"), page.get("start_ticks")
        page.close()
        if pid and process.alive(process.Identity(pid, start_ticks)):
            return True
    return False


def close_all(fds: list[int]) -> None:
    """Close descriptors that came with a message nobody wants."""
    for descriptor in fds:
        os.close(descriptor)


def reply(client: socket.socket, message: Mapping[str, Any]) -> None:
    """Answer a client of ours, if it is still there to hear it."""
    try:
        process.send(client, message)
    except OSError as error:
        print(f"archiver: a client left before its answer: {error}", file=sys.stderr)
