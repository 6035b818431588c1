"""A bound on what goes over the line: a bucket that fills with tokens, a byte each."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

BURST_S = 2.0  # how much of the rate may be saved up; a pack is cut so that it is no more than this
LEAST_BYTES = 1 << 20  # below this a pack is hardly worth a request


@dataclass(slots=True)
class Bucket:
    """Pure. `owed` may be negative: whoever takes more than there is waits, and the next one behind it."""

    bytes_per_s: float
    tokens: float = 0.0
    at_s: float = 0.0

    def take(self, size_bytes: int, now_s: float) -> float:
        """Take `size_bytes`; how long to wait before they may be sent, in seconds."""
        burst = self.bytes_per_s * BURST_S
        self.tokens = min(burst, self.tokens + (now_s - self.at_s) * self.bytes_per_s)
        self.at_s = now_s
        self.tokens -= size_bytes
        return max(0.0, -self.tokens / self.bytes_per_s)


class Throttle:
    """A bucket for several threads; without a rate it holds nobody up."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bucket = Bucket(bytes_per_s, 0.0, time.monotonic()) if bytes_per_s else None
        self._lock = threading.Lock()

    @property
    def piece_bytes(self) -> int | None:
        """How large a piece may be so that the line is not busy for long at once; None for any size."""
        if self._bucket is None:
            return None
        return max(LEAST_BYTES, int(self._bucket.bytes_per_s * BURST_S))

    def wait(self, size_bytes: int) -> None:
        """Until `size_bytes` may go."""
        if self._bucket is not None:
            with self._lock:
                pause_s = self._bucket.take(size_bytes, time.monotonic())
            time.sleep(pause_s)
