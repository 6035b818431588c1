"""Children of a test do not outlive it, and are waited for, however it ends."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any, TypeVar

Child = TypeVar("Child", bound="subprocess.Popen[Any]")


@contextlib.contextmanager
def ended(child: Child) -> Iterator[Child]:
    """Killed at the end of the block, if it still lives.

    A Popen alone, as a context manager, waits for whom nobody ends: where an assertion fails in the block that is for
    ever, and where a timeout ends that, nobody has waited for the child.
    """
    with child:
        try:
            yield child
        finally:
            child.kill()
