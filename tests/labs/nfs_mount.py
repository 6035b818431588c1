"""Mount an NFS export without a kernel client: FUSE calls become libnfs calls, one at a time.

    unshare --net python -m tests.labs.nfs_mount EXPORT MOUNTPOINT WORK

Starts the server (nfs-ganesha, with rpcbind for it) first, both in the network namespace it is called in, so no port of
the machine is touched. Nothing is cached here, so what a program sees is what the server answers. Stays in the
foreground until unmounted, then ends the server.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mfusepy

from tests.labs.mounts import apart

NFS_PORT, MOUNT_PORT = 2049, 2050
START_S = 60.0
_STAT_NAMES = (
    "dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks", "atime", "mtime", "ctime",
    "atime_nsec", "mtime_nsec", "ctime_nsec", "used",
)  # fmt: skip


class _Stat(ctypes.Structure):
    """struct nfs_stat_64."""

    _fields_ = [(name, ctypes.c_uint64) for name in _STAT_NAMES]


class _Timeval(ctypes.Structure):
    """struct timeval."""

    _fields_ = [("seconds", ctypes.c_long), ("microseconds", ctypes.c_long)]


class _Url(ctypes.Structure):
    """struct nfs_url."""

    _fields_ = [(name, ctypes.c_char_p) for name in ("server", "path", "file")]


class _Entry(ctypes.Structure):
    """The beginning of struct nfsdirent."""

    _fields_ = [("next", ctypes.c_void_p), ("name", ctypes.c_char_p), ("inode", ctypes.c_uint64)]


class Client:
    """One libnfs context. Calls raise OSError with the server's errno."""

    def __init__(self, export: Path) -> None:
        self._lib = ctypes.CDLL("libnfs.so.13")
        for name in ("nfs_init_context", "nfs_parse_url_dir", "nfs_readdir"):
            getattr(self._lib, name).restype = ctypes.c_void_p
        self._lib.nfs_get_error.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._lib.nfs_init_context())
        text = f"nfs://127.0.0.1{export}?version=3&nfsport={NFS_PORT}&mountport={MOUNT_PORT}&uid=0&gid=0"
        raw = self._lib.nfs_parse_url_dir(self._context, text.encode())
        url = ctypes.cast(raw, ctypes.POINTER(_Url)).contents
        self.call("mount", url.server, str(export).encode())

    def call(self, name: str, *arguments: Any) -> int:
        """nfs_<name>(context, …); negative results become OSError."""
        result: int = getattr(self._lib, f"nfs_{name}")(self._context, *arguments)
        if result < 0:
            said = self._lib.nfs_get_error(self._context) or b""
            raise OSError(_errno(-result, said), f"nfs_{name}: {said.decode(errors='replace')}")
        return result

    def open(self, path: bytes, flags: int, mode: int = 0) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self.call("open2", path, flags, mode, ctypes.byref(handle))
        return handle

    def names(self, path: bytes) -> Iterator[str]:
        folder = ctypes.c_void_p()
        self.call("opendir", path, ctypes.byref(folder))
        try:
            while entry := self._lib.nfs_readdir(self._context, folder):
                yield ctypes.cast(entry, ctypes.POINTER(_Entry)).contents.name.decode()
        finally:
            self._lib.nfs_closedir(self._context, folder)


def _errno(number: int, said: bytes) -> int:
    """libnfs gives ERANGE for every status it does not know; the text has its name."""
    if b"NOTEMPTY" in said:
        return errno.ENOTEMPTY
    if b"NOSPC" in said:
        return errno.ENOSPC
    return errno.EIO if number == errno.ERANGE else number


class NfsFileSystem(mfusepy.Operations):
    """The calls that the kernel makes; handles are indexes of `_handles`."""

    use_ns = True

    def __init__(self, client: Client) -> None:
        self._client = client
        self._handles: dict[int, ctypes.c_void_p] = {}
        self._next = 1

    def _held(self, handle: ctypes.c_void_p) -> int:
        self._next += 1
        self._handles[self._next] = handle
        return self._next

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = _Stat()
        if fh is None:
            self._client.call("lstat64", path.encode(), ctypes.byref(found))
        else:
            self._client.call("fstat64", self._handles[fh], ctypes.byref(found))
        told = {f"st_{name}": getattr(found, name) for name in ("mode", "nlink", "uid", "gid", "size", "blocks", "ino")}
        for name in ("atime", "mtime", "ctime"):
            told[f"st_{name}"] = getattr(found, name) * 10**9 + getattr(found, f"{name}_nsec")
        return told

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        return iter([*self._client.names(path.encode())])

    def mkdir(self, path: str, mode: int) -> int:
        return self._client.call("mkdir2", path.encode(), mode)

    def rmdir(self, path: str) -> int:
        return self._client.call("rmdir", path.encode())

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return self._held(self._client.open(path.encode(), os.O_CREAT | os.O_RDWR | os.O_EXCL, mode & 0o777))

    def open(self, path: str, flags: int) -> int:
        kept = os.O_RDONLY | os.O_WRONLY | os.O_RDWR | os.O_APPEND
        return self._held(self._client.open(path.encode(), flags & kept))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        got = self._client.call("pread", self._handles[fh], ctypes.c_uint64(offset), ctypes.c_uint64(size), buffer)
        return buffer.raw[:got]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        arguments = (ctypes.c_uint64(offset), ctypes.c_uint64(len(data)), data)
        return self._client.call("pwrite", self._handles[fh], *arguments)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return self._client.call("truncate", path.encode(), ctypes.c_uint64(length))

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        return self._client.call("fsync", self._handles[fh])

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0  # a server answers a change of names when it is durable

    def release(self, path: str, fh: int) -> int:
        return self._client.call("close", self._handles.pop(fh))

    def rename(self, old: str, new: str) -> int:
        return self._client.call("rename", old.encode(), new.encode())

    def link(self, target: str, source: str) -> int:
        return self._client.call("link", source.encode(), target.encode())

    def symlink(self, target: str, source: str) -> int:
        return self._client.call("symlink", source.encode(), target.encode())

    def readlink(self, path: str) -> str:
        buffer = ctypes.create_string_buffer(4096)
        self._client.call("readlink", path.encode(), buffer, len(buffer))
        return buffer.value.decode()

    def unlink(self, path: str) -> int:
        return self._client.call("unlink", path.encode())

    def chmod(self, path: str, mode: int) -> int:
        return self._client.call("chmod", path.encode(), mode)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        wanted = times or (time.time_ns(),) * 2
        pair = (_Timeval * 2)(*((at // 10**9, at % 10**9 // 1000) for at in wanted))
        return self._client.call("utimes", path.encode(), pair)

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 24, "f_bfree": 1 << 23, "f_bavail": 1 << 23}


def serve(export: Path, work: Path) -> list[subprocess.Popen[bytes]]:
    """Start rpcbind and the server; returns when it answers. Raises RuntimeError with the end of its log."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    config, log = work / "ganesha.conf", work / "ganesha.log"
    config.write_text(
        f"NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = {NFS_PORT}; MNT_Port = {MOUNT_PORT}; NLM_Port = {MOUNT_PORT + 1};"
        " Enable_NLM = false; Enable_RQUOTA = false; }\n"
        f"EXPORT {{ Export_Id = 1; Path = {export}; Pseudo = /lab; Access_Type = RW; Squash = No_Root_Squash;"
        " SecType = sys; Transports = TCP; Protocols = 3; FSAL { Name = VFS; } }\n"
    )
    run = work / "run"  # theirs: a machine may have an rpcbind, whose lock and socket lie in /run
    (run / "ganesha").mkdir(parents=True)
    run.chmod(0o755)
    ganesha = ["ganesha.nfsd", "-F", "-f", str(config), "-L", str(log), "-p", str(work / "ganesha.pid")]
    started = [_start(["rpcbind", "-f"], run)]
    _await(111, started, log)
    started.append(_start(ganesha, run))
    _await(NFS_PORT, started, log)
    return started


def _start(command: list[str], run: Path) -> subprocess.Popen[bytes]:
    """With `run` as its /run."""
    shown = 'mount --bind "$0" /run && exec "$@"'
    return subprocess.Popen([*apart(), "sh", "-c", shown, str(run), "setpriv", "--pdeathsig", "KILL", *command])


def _await(port: int, started: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while socket.socket().connect_ex(("127.0.0.1", port)):
        if time.monotonic() > deadline_s or any(one.poll() is not None for one in started):
            said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise RuntimeError(f"nothing listens on port {port}: {said}")
        time.sleep(0.05)


if __name__ == "__main__":
    export, mountpoint, work = (Path(argument) for argument in sys.argv[1:4])
    servers = serve(export, work)
    mfusepy.FUSE(NfsFileSystem(Client(export)), str(mountpoint), foreground=True, nothreads=True, fsname="nfs-lab")
    for server in reversed(servers):
        server.kill()
        server.wait()
