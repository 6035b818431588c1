"""The archiver's end of shim.sock: slots come over it, and go back over it when the shim is another one."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast import process
from holdfast.errors import HoldfastError
from holdfast.heartbeat import Page
from holdfast.runs import RunDir

ANSWER_S = 5.0


class ShimLink:
    """A connection to the shim that said hello. Non-blocking from then on."""

    def __init__(self, run: RunDir, slots: Mapping[int, list[int]]) -> None:
        """Connect, offer the `slots` we keep, by rank, and say hello. Raises OSError when no shim listens."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.sock.settimeout(ANSWER_S)
            self.sock.connect(str(run.runtime / "shim.sock"))
            for rank, fds in slots.items():  # first: the hello says that there is no more to come
                self._ask({"op": "offer", "role": "archiver", "rank": rank}, fds)
            self.hello = self._ask({"op": "hello", "role": "archiver"})
            self.sock.setblocking(False)
        except BaseException:
            self.sock.close()
            raise

    def _ask(self, message: dict[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        process.send(self.sock, message, fds)
        return process.receive(self.sock)[0]

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message with its descriptors, None when there is none yet. Raises ConnectionError at the end."""
        try:
            return process.receive(self.sock)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def connect(run: RunDir, slots: Mapping[int, list[int]], *, alone: bool) -> ShimLink | None:
    """A link to the shim that lives, else to one we start; None when neither works now."""
    try:
        return ShimLink(run, slots)
    except OSError:
        pass  # none listens: start one
    try:
        process.start_shim(run, alone=alone)
        return ShimLink(run, slots)
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
