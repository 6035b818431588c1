"""Room kept behind the end of the files that must still grow when the disk is full.

A full disk may cost a checkpoint, never the training: a `print` that meets ENOSPC would end the program, and a journal
that cannot be written would hold up the supervisor. So blocks are allocated ahead of the end of these files
(`fallocate` with KEEP_SIZE: sizes and offsets do not change) and given back when the run is over.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from holdfast.node.logfile import allocate
from holdfast.runs import RunDir

OUTPUT_BYTES, RECORDS_BYTES, JOURNAL_BYTES = 8 << 20, 4 << 20, 1 << 20
OTHERS_BYTES = 256 << 10  # archiver.jsonl, shim.jsonl: others write there to the very end, so it is not given back
SHARE = 32  # of what is free, at most one part in so many for one file: small disks are not filled by this


class Headroom:
    """The reserves of one run."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._until: dict[Path, int] = {}  # up to which offset blocks are allocated

    def keep(self) -> None:
        """Top up every file's reserve once half of it is used; where that cannot be, what there is stays."""
        wanted = dict.fromkeys(self._run.records.glob("rank-*.jsonl"), RECORDS_BYTES)
        wanted |= {self._run.output: OUTPUT_BYTES, self._run.journal: JOURNAL_BYTES}
        wanted |= dict.fromkeys((self._run.archiver_log, self._run.shim_log), OTHERS_BYTES)
        for path, ahead in wanted.items():
            with contextlib.suppress(OSError):  # not there yet, the disk is full, or its file system cannot
                self._keep(path, ahead)

    def _keep(self, path: Path, most: int) -> None:
        size, found = path.stat().st_size, os.statvfs(path)
        ahead = min(most, found.f_bavail * found.f_frsize // SHARE)
        if size + ahead // 2 > self._until.get(path, 0):
            allocate(path, size, ahead)
            self._until[path] = size + ahead

    def release(self) -> None:
        """Give back what was not used of the trainer's and our own files. No trainer may live."""
        for path in self._until.keys() - {self._run.archiver_log, self._run.shim_log}:
            with contextlib.suppress(OSError):  # a file that is gone keeps nothing
                os.truncate(path, path.stat().st_size)
        self._until.clear()
