"""A Python for nodes that have none: uv fetches and checks it, we leave out what nothing of ours loads.

It is kept in $HOLDFAST_HOME/bundles/pythons under the SHA-256 of our own archive, the same bytes for the same Python,
and which of them a platform takes beside the wheels.
"""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast import fsio
from holdfast.bundle.closure import cache, uv
from holdfast.bundle.places import Platform, make_folder
from holdfast.errors import HoldfastError

WITH_EVERY_WHEEL = "3.12"  # what is sent where there are no wheels for the laptop's own version
_LIBC = {"glibc": "gnu", "musl": "musl"}
_FETCH_S = 600.0
_MOST_BYTES = 1 << 16
_LIBRARY = "lib/python3.*"
_LEFT_OUT = (
    *("BUILD", "include", "share", "lib/pkgconfig", "lib/itcl*", "lib/libtcl*", "lib/libtk*", "lib/tcl*", "lib/tk*"),
    *(f"{_LIBRARY}/{name}" for name in ("config-*", "ensurepip", "idlelib", "lib2to3", "site-packages/*", "test")),
    *(f"{_LIBRARY}/{name}" for name in ("tkinter", "turtledemo", "lib-dynload/_t[ek]*")),
    "*__pycache__",
)


@dataclass(frozen=True, slots=True)
class Standalone:
    """An archive of the cache; in it bin/python3."""

    version: str  # "3.12.8"
    sha256: str
    unpacked_bytes: int

    @property
    def path(self) -> Path:
        return cache() / "pythons" / f"{self.sha256}.tar.gz"

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def name(self) -> str:
        """Of its folder on a node."""
        return f"python-{self.sha256[:16]}"

    def __str__(self) -> str:
        return f"CPython {self.version}"


def cached(platform: Platform) -> Standalone | None:
    """What a node of `platform` gets; None where it has to be fetched, as one has that was damaged here."""
    with contextlib.suppress(OSError, OverflowError, ValueError, TypeError):
        python = Standalone(**json.loads(fsio.get(fsio.DISK, _index(platform), limit_bytes=_MOST_BYTES)))
        if hashlib.sha256(python.path.read_bytes()).hexdigest() == python.sha256:
            return python
    return None


def fetched(platform: Platform) -> Standalone:
    """The same from where uv gets it, checked by uv. Raises HoldfastError, OSError."""
    (make_folder("bundles") / "pythons").mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache()) as folder:
        _install(platform, Path(folder))
        found = (path for path in Path(folder).glob("cpython-*") if not path.is_symlink())
        installed = next(found)  # beside a link of its minor version
        data, unpacked_bytes = _pack(installed)
    version = installed.name.split("-")[1]
    python = Standalone(version, hashlib.sha256(data).hexdigest(), unpacked_bytes)
    fsio.replace(python.path, data)
    about = {"version": version, "sha256": python.sha256, "unpacked_bytes": unpacked_bytes}
    fsio.replace(_index(platform), json.dumps(about).encode())
    return python


def _request(platform: Platform) -> str:
    """As uv names it."""
    return f"cpython-{platform.python}-linux-{platform.machine}-{_LIBC[platform.libc]}"


def _index(platform: Platform) -> Path:
    return cache() / f"{_request(platform)}.json"


def _install(platform: Platform, into: Path) -> None:
    """Raises HoldfastError with uv's own reason."""
    program = uv()
    if program is None:
        raise HoldfastError("this machine has no uv, which fetches it", hint="pip install uv")
    what = f"CPython {platform.python} for {platform.machine} with {platform.libc}"
    ours = {"UV_PYTHON_INSTALL_DIR": str(into), "UV_PYTHON_INSTALL_BIN": "0", "NO_COLOR": "1"}
    argv = [program, "python", "install", _request(platform)]
    try:
        done = subprocess.run(
            argv, env={**os.environ, **ours}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_FETCH_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise HoldfastError(f"{what} did not arrive within {_FETCH_S:g} s") from None
    if done.returncode:
        said = re.findall(r"(?m)^\s*(?:error|cause|Caused by): (.*)", done.stderr)
        raise HoldfastError(
            f"{what} cannot be fetched: {said[-1] if said else f'uv ended with status {done.returncode}'}",
            hint="is github.com reachable from here? UV_PYTHON_INSTALL_MIRROR names another place to uv",
        )


def _pack(root: Path) -> tuple[bytes, int]:
    """The archive of what nodes need, and how many bytes that is unpacked."""
    out, unpacked_bytes = io.BytesIO(), 0
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in _needed(root):
            entry = archive.gettarinfo(path, str(path.relative_to(root)))
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            data = path.read_bytes() if entry.isreg() else b""
            if path.name.startswith("_sysconfigdata"):  # uv writes there where it lies
                data = data.replace(str(root).encode(), b"/install")
            entry.size = len(data)
            unpacked_bytes += entry.size
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue(), unpacked_bytes


def _needed(folder: Path, at: str = "") -> Iterator[Path]:
    """Files, links and folders, each folder before what it holds."""
    for path in sorted(folder.iterdir()):
        name = f"{at}{path.name}"
        if any(fnmatch.fnmatchcase(name, left_out) for left_out in _LEFT_OUT):
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _needed(path, f"{name}/")
