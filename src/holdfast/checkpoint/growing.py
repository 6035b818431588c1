"""A slot that is filled while it grows: to fault its pages in takes a fifth as long as to read what goes there."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from holdfast.checkpoint.slots import Slot
from holdfast.errors import StoreRefused


class Growing:
    """The memory of a slot, as far as it is there."""

    def __init__(self, slot: Slot, size_bytes: int) -> None:
        self._slot, self._size = slot, size_bytes
        self._end = os.fstat(slot.descriptor).st_size
        self._failed: Exception | None = None
        self._moved = threading.Condition()

    def memory(self, offset: int, size_bytes: int) -> memoryview:
        """Writable memory of the slot, from a page boundary on, once it is there; a mapping of its own.

        Raises StoreRefused when the slot cannot grow.
        """
        end = offset + size_bytes
        with self._moved:
            self._moved.wait_for(lambda: self._end >= end or self._failed is not None)
        if isinstance(self._failed, OSError):
            said = self._failed.strerror
            raise StoreRefused(f"there is no memory for a slot of {self._size} bytes: {said}") from self._failed
        if self._failed is not None:
            raise self._failed
        if not size_bytes:
            return memoryview(b"")
        return memoryview(mmap.mmap(self._slot.descriptor, size_bytes, offset=offset))

    def grow(self) -> None:
        """Do it, on whichever thread; what goes wrong is raised where memory is waited for."""
        try:
            self._slot.extend(self._size, self._reached)
        except Exception as error:
            with self._moved:
                self._failed = error
                self._moved.notify_all()

    def _reached(self, end: int) -> None:
        with self._moved:
            self._end = end
            self._moved.notify_all()


@contextmanager
def growing(slot: Slot, size_bytes: int) -> Iterator[Growing]:
    """Grow `slot` meanwhile; it is mapped anew at the end. Nobody may hold a slice of its view then.

    Raises StoreRefused when it cannot grow.
    """
    found = Growing(slot, size_bytes)
    thread = threading.Thread(target=found.grow, name="slot growth")
    thread.start()
    try:
        yield found
    finally:
        thread.join()
        slot.refresh()
    found.memory(size_bytes, 0)
