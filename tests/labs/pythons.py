"""Machines without a Python, and one that uv can fetch: this machine's own, laid out as python-build-standalone is."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.labs import sshd as lab
from tests.labs.mounts import apart
from tests.needs import need, need_program

MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
SYSTEM = Path(f"/usr/bin/python{MINOR}")  # it leans on libraries that everybody here has
_PLACES = "/usr/bin/python3* /usr/local/bin/python3* /opt/conda/bin/python3*"
_LEFT_OUT = ("__pycache__", "config-*", "dist-packages", "ensurepip", "idlelib", "site*custom*", "test", "tkinter")


@dataclass(frozen=True, slots=True)
class Shelf:
    """What uv is told of: for this machine, for one of the other kind, and as if it were for musl."""

    version: str
    archive: Path
    listed: Path

    def environ(self) -> dict[str, str]:
        """What makes uv fetch from here, and from nowhere else."""
        return {"UV_PYTHON_DOWNLOADS_JSON_URL": self.listed.as_uri(), "UV_HTTP_RETRIES": "0", "UV_NO_CACHE": "1"}

    def at(self, folder: Path, *, url: str = "", sha256: str = "") -> Shelf:
        """The same with another address, or with a hash that is not the archive's."""
        listed = folder / "listed.json"
        listed.write_text(
            json.dumps(_listed(self.version, url or self.archive.as_uri(), sha256 or _hash(self.archive)))
        )
        return Shelf(self.version, self.archive, listed)


def shelf(folder: Path) -> Shelf:
    """Made anew: about a second."""
    need_program("uv")
    need(SYSTEM.exists(), f"needs {SYSTEM}")
    ask = "import platform, sysconfig as s; print(platform.python_version(), s.get_path('stdlib'))"
    said = subprocess.run([SYSTEM, "-I", "-c", ask], capture_output=True, text=True, check=True)
    version, library = said.stdout.split()
    root = folder / "python"
    (root / "bin").mkdir(parents=True)
    shutil.copy(SYSTEM, root / "bin" / SYSTEM.name)
    (root / "bin" / "python3").symlink_to(SYSTEM.name)
    shutil.copytree(library, root / "lib" / SYSTEM.name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    archive = folder / "python.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
        packed.add(root, "python")
    return Shelf(version, archive, folder).at(folder)


def _listed(version: str, url: str, sha256: str) -> dict[str, object]:
    major, minor, patch = (int(part) for part in version.split("."))
    about = {"name": "cpython", "os": "linux", "major": major, "minor": minor, "patch": patch, "prerelease": ""}
    kinds = [(machine, libc) for machine in ("x86_64", "aarch64") for libc in ("gnu", "musl")]
    return {
        f"cpython-{version}-linux-{machine}-{libc}": {
            **about, "arch": {"family": machine, "variant": None}, "libc": libc, "url": url, "sha256": sha256,
            "variant": None, "build": "20250101",
        }
        for machine, libc in kinds
    }  # fmt: skip


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def bare(folder: Path, user: str, home: Path) -> Iterator[lab.Sshd]:
    """A server in whose sessions no Python is found; files below `home`/noexec cannot be run there."""
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "nothing").touch()
    (home / "noexec").mkdir()
    about = home.stat()
    script = f"""
for each in {_PLACES}; do [ ! -f "$each" ] || mount --bind {folder}/nothing "$each"; done
mount -t tmpfs -o noexec,size=1m,uid={about.st_uid},gid={about.st_gid} tmpfs {home}/noexec
exec "$@"
"""
    with lab.sshd(folder, user, home, before=[*apart(), "sh", "-c", script, "sh"]) as server:
        yield server
