"""A real NFS mount for a test: server and client in user space, in a network namespace of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.needs import need_program
from tests.waiting import until


@dataclass(frozen=True, slots=True)
class Mounted:
    """`path` lies on the server."""

    path: Path
    server_pid: int

    @contextmanager
    def silent(self) -> Iterator[None]:
        """The server answers nothing for a while, as behind a cut cable."""
        os.kill(self.server_pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.server_pid, signal.SIGCONT)


@contextmanager
def nfs_mount(work: Path) -> Iterator[Mounted]:
    """A folder on an NFS server. `work` gets the export, the mount point and the logs."""
    for program in ("ganesha.nfsd", "rpcbind", "fusermount3", "unshare"):
        need_program(program)
    export, mountpoint = work / "export", work / "mount"
    export.mkdir(parents=True)
    mountpoint.mkdir()
    with (work / "lab.log").open("wb") as log:
        command = [sys.executable, "-m", "tests.labs.nfs_mount", str(export), str(mountpoint), str(work)]
        lab = subprocess.Popen(["unshare", "--net", *command], stdout=log, stderr=log)
    try:
        until(lambda: mountpoint.is_mount() or lab.poll() is not None, what=(work / "lab.log").read_text)
        assert mountpoint.is_mount(), (work / "lab.log").read_text()
        yield Mounted(mountpoint, int((work / "ganesha.pid").read_text()))
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], check=False)
        if lab.wait(timeout=60) != 0:
            raise AssertionError((work / "lab.log").read_text())
