"""One thread for what takes long, so that an event loop goes on answering.

What a job raises ends neither the thread nor the loop: it is told, and who asked for it goes on without a result.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Job = Callable[[], Any]
Then = Callable[[Any], None]
Tell = Callable[[str, BaseException | None], None]


class Worker:
    """Runs jobs one after the other on its thread, and what follows each of them on the caller's."""

    def __init__(self, name: str, tell: Tell) -> None:
        """`wake` is an eventfd that is readable when `collect` has something to do.

        tell: gets the worker's name and what a job raised, None when it ended well, where `collect` is called.
        """
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.outstanding = 0
        self._name, self._tell = name, tell
        self._jobs: SimpleQueue[tuple[Job, Then, Any]] = SimpleQueue()
        self._done: deque[tuple[Then, Any, BaseException | None]] = deque()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, job: Job, then: Then, *, failed: Any = None) -> None:
        """Run `job` there, later `then(result)` here, or `then(failed)` when the job raised."""
        self.outstanding += 1
        self._jobs.put((job, then, failed))

    def collect(self) -> None:
        """Tell how jobs ended, and call what follows them."""
        try:
            os.eventfd_read(self.wake)
        except BlockingIOError:
            return
        while self._done:
            then, result, error = self._done.popleft()
            self.outstanding -= 1
            self._tell(self._name, error)
            then(result)

    def _run(self) -> None:
        while True:
            job, then, failed = self._jobs.get()
            try:
                self._done.append((then, job(), None))
            except BaseException as error:
                self._done.append((then, failed, error))
            os.eventfd_write(self.wake, 1)
