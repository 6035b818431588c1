"""Page-aligned memory that a thread uses again and again, so that no read has to ask the kernel for some."""

from __future__ import annotations

import mmap
import threading

LEAST_BYTES = 4 << 20


class Scratch(threading.local):
    """One piece of memory a thread. Two uses at a time need two of these."""

    _held: mmap.mmap | None = None

    def take(self, size: int) -> memoryview:
        """`size` bytes, overwritten by this thread's next call."""
        if self._held is None or len(self._held) < size:
            self._held = mmap.mmap(-1, max(size, LEAST_BYTES))
        return memoryview(self._held)[:size]
