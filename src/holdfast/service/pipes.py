"""The pipes between the service and a verb, as frames: never waited for, never more in memory than a window."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Callable

from holdfast.service import frames
from holdfast.service.frames import Kept, Malformed

_OUTPUT_BYTES = frames.PAYLOAD_BYTES - 1  # one names the stream
_INPUT_BYTES = frames.WINDOW_BYTES + 2 * (frames.PAYLOAD_BYTES + frames.COST_BYTES)  # and what was begun before a cut


class Inlet:
    """The verb's stdin. A frame counts when all of it is with the verb, or when the verb has closed its end."""

    def __init__(self, descriptor: int, moved: Callable[[], None]) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor: int | None = descriptor
        self._moved = moved
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._at = 0  # how much of the first one is written
        self._used = 0

    @property
    def count(self) -> int:
        """Frames that need not be sent again, should the connection end now."""
        return self._used + bool(self._at)

    def take(self, payload: bytes) -> None:
        """One frame; an empty one is the end. Raises Malformed when the laptop sends more than it may."""
        self._waiting.append(payload)
        self._waiting_bytes += len(payload) + frames.COST_BYTES
        if self._waiting_bytes > _INPUT_BYTES:
            raise Malformed("more input than there is room for")
        if len(self._waiting) == 1:
            self._write()

    def forget(self) -> None:
        """The connection is gone: what the verb has nothing of comes again."""
        while len(self._waiting) > bool(self._at):
            self._waiting_bytes -= len(self._waiting.pop()) + frames.COST_BYTES

    def close(self) -> None:
        """The verb gets no more."""
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_writer(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self) -> None:
        """As much as the pipe takes; goes on by itself when it takes more."""
        while self._waiting:
            if not self._waiting[0]:
                self.close()
            if self._descriptor is not None and not self._is_written(self._descriptor, self._waiting[0]):
                asyncio.get_running_loop().add_writer(self._descriptor, self._write)
                return
            self._waiting_bytes -= len(self._waiting.popleft()) + frames.COST_BYTES
            self._at = 0
            self._used += 1
            self._moved()
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_writer(self._descriptor)

    def _is_written(self, descriptor: int, payload: bytes) -> bool:
        """Whether all of it is, now; nobody waits for what a verb that has closed its end would get."""
        try:
            while self._at < len(payload):
                self._at += os.write(descriptor, memoryview(payload)[self._at :])
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self.close()
        return True


class Outlets:
    """The verb's stdout and stderr, read into `kept` while that has room."""

    def __init__(self, streams: dict[int, int], kept: Kept, moved: Callable[[], None]) -> None:
        """streams: descriptor → 1 or 2."""
        self._streams, self._kept, self._moved = streams, kept, moved
        self._left: dict[int, int] = {}  # descriptor → bytes that are still in the pipe, once the verb has ended
        self._reads = False
        for descriptor in streams:
            os.set_blocking(descriptor, False)
        self.resume()

    @property
    def are_over(self) -> bool:
        """All that the verb has written was read."""
        return not self._streams

    def resume(self) -> None:
        """There may be room again."""
        if self._reads or self._kept.is_full:
            return
        self._reads = True
        for descriptor in self._streams:
            asyncio.get_running_loop().add_reader(descriptor, self._read, descriptor)

    def finish(self) -> None:
        """The verb has ended: what it wrote is in the pipes, what comes later is of somebody that it left behind."""
        for descriptor in list(self._streams):
            self._left[descriptor] = _waiting_in(descriptor)
            if not self._left[descriptor]:
                self._close(descriptor)

    def close(self) -> None:
        """Read no more."""
        for descriptor in list(self._streams):
            self._close(descriptor)

    def _read(self, descriptor: int) -> None:
        left = self._left.get(descriptor, _OUTPUT_BYTES)
        data = os.read(descriptor, min(left, _OUTPUT_BYTES))
        if data:
            self._kept.add(frames.output(self._streams[descriptor], data))
        if descriptor in self._left:
            self._left[descriptor] = left - len(data)
        if not data or self._left.get(descriptor) == 0:
            self._close(descriptor)
        if self._kept.is_full:
            self._reads = False
            for each in self._streams:
                asyncio.get_running_loop().remove_reader(each)
        self._moved()

    def _close(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        del self._streams[descriptor]
        os.close(descriptor)


def _waiting_in(pipe: int) -> int:
    """Bytes that can be read from it now."""
    answer = fcntl.ioctl(pipe, termios.FIONREAD, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
