"""A program on a host, its standard streams in our hands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence

from holdfast.errors import HostUnreachable
from holdfast.link import remote
from holdfast.link.client import Up
from holdfast.sync.frames import Cut, Frames, Told, printable

_MOST_SAID_BYTES = 2000


class NotStarted(HostUnreachable):
    """What was to speak with us did not begin."""


@contextlib.contextmanager
def conversation(up: Up, words: Sequence[str]) -> Iterator[Frames]:
    """Speak with one end of a sync that `words` start there; it ends when we hang up. What we have to say is made
    ready while it starts.

    Raises NotStarted with the last line of its standard error, Told by that end, MasterGone, Refused.
    """
    with contextlib.ExitStack() as held:
        said = held.enter_context(tempfile.TemporaryFile())
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        held.callback(os.close, ours_in)
        held.callback(os.close, ours_out)
        try:
            stdio = (theirs_in, theirs_out, said.fileno())
            passenger = asyncio.run(remote.passenger(up, f"exec {shlex.join(words)}", stdio))
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        held.callback(passenger.close)
        frames = Frames(ours_in, ours_out, awaits=True)
        try:
            yield frames
        except Told as error:
            raise Told(f"{up.alias}: {error}", hint=error.hint, exit_code=error.exit_code) from None
        except Cut as cut:
            if not frames.awaits:
                raise
            lines = os.pread(said.fileno(), _MOST_SAID_BYTES, 0).decode(errors="replace").strip().splitlines()
            why = f"holdfast did not start there: {printable(lines[-1])}" if lines else str(cut)
            raise NotStarted(f"{up.alias}: {why}", hint=f"what was started: {shlex.join(words)}") from None
