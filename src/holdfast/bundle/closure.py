"""The wheels that a node needs: this holdfast and, in the versions installed here, what it stands on.

Wheels are kept in $HOLDFAST_HOME/bundles/wheels under their SHA-256, and which of them a platform takes beside it, so
that a registry is asked once. Nothing is built: what has no wheel for a platform cannot go there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from holdfast import fsio, runs
from holdfast.bundle import own
from holdfast.bundle.places import Platform, make_folder
from holdfast.errors import HoldfastError

EXTRAS = ("s3",)  # go along where they are installed here
_LEFT_OUT = {"markdown-it-py", "mdurl", "pygments"}  # rich asks for them, and we ask nothing of it that needs them
_OLDEST_MINOR = {"glibc": 5, "musl": 0}  # of glibc 2 and musl 1 that any wheel names
_LEGACY = {
    17: "manylinux2014",
    12: "manylinux2010",
    5: "manylinux1",
}  # minor of glibc 2 → what wheels were named before
_FETCH_S = 600.0
_MOST_BYTES = 1 << 20


class NoWheel(HoldfastError):
    """Something that a node needs is not made for it."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file of the cache."""

    name: str
    sha256: str

    @property
    def path(self) -> Path:
        return cache() / "wheels" / f"{self.sha256}.whl"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is pushed: the wheel of this holdfast, and the others."""

    own: tuple[str, bytes]
    others: tuple[Wheel, ...]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Sorted (name, SHA-256) of all wheels."""
        name, data = self.own
        mine = (name, hashlib.sha256(data).hexdigest())
        return sorted([mine, *((wheel.name, wheel.sha256) for wheel in self.others)])

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of `contents`."""
        told = "".join(f"{name} {digest}\n" for name, digest in self.contents)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def sizes_bytes(self) -> dict[str, int]:
        """SHA-256 of each wheel → its size."""
        paths = {wheel.name: wheel.path for wheel in self.others}
        return {
            digest: paths[name].stat().st_size if name in paths else len(self.own[1]) for name, digest in self.contents
        }

    @property
    def unpacked_bytes(self) -> int:
        """Of what is in them. Raises OSError, zipfile.BadZipFile."""
        archives: list[io.BytesIO | Path] = [io.BytesIO(self.own[1]), *(wheel.path for wheel in self.others)]
        return sum(_unpacked_bytes(archive) for archive in archives)


def _unpacked_bytes(archive: io.BytesIO | Path) -> int:
    with zipfile.ZipFile(archive) as wheel:
        return sum(entry.file_size for entry in wheel.infolist())


def cache() -> Path:
    """Where wheels are kept."""
    return runs.home() / "bundles"


def bundle(platform: Platform) -> Bundle:
    """What a node of `platform` needs, from the cache or a registry. Raises NoWheel, HoldfastError, OSError."""
    asked = needed(platform)
    return Bundle(own.wheel(), _cached(platform, asked) or _fetched(platform, asked))


def cached(platform: Platform) -> Bundle | None:
    """The same, None where a registry would have to be asked."""
    wheels = _cached(platform, needed(platform))
    return None if wheels is None else Bundle(own.wheel(), wheels)


def needed(platform: Platform) -> list[str]:
    """What holdfast stands on there, itself not among it, in the versions installed here: `name==version`, sorted."""
    found: dict[str, str] = {}
    waiting = [one for extra in ("", *_extras()) for one in _asked(own.distribution(), platform, extra)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or name in _LEFT_OUT:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = f"{name}{requirement.specifier}"  # needed there and not here
            continue
        found[name] = f"{name}=={distribution.version}"
        waiting += [one for extra in ("", *requirement.extras) for one in _asked(distribution, platform, extra)]
    return sorted(found.values())


def _extras() -> list[str]:
    """Those of EXTRAS whose every requirement is installed here."""
    return [extra for extra in EXTRAS if all(map(_is_installed, _of_extra(extra)))]


def _of_extra(extra: str) -> list[str]:
    asked = map(Requirement, own.distribution().requires or ())
    return [
        one.name for one in asked if one.marker and not one.marker.evaluate() and one.marker.evaluate({"extra": extra})
    ]


def _is_installed(name: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(name))
    return False


def _asked(distribution: importlib.metadata.Distribution, platform: Platform, extra: str) -> Iterator[Requirement]:
    """What it requires there, with `extra` or, for "", without any."""
    there = _environment(platform, extra)
    for line in distribution.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(there):
            yield requirement


def _environment(platform: Platform, extra: str) -> dict[str, str]:
    """The variables of environment markers, as they are there."""
    return {
        "extra": extra,
        "implementation_name": "cpython",
        "implementation_version": f"{platform.python}.0",
        "os_name": "posix",
        "platform_machine": platform.machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{platform.python}.0",
        "python_version": platform.python,
        "sys_platform": "linux",
    }


def tags(platform: Platform) -> list[str]:
    """The platform tags of wheels that run there, best first (PEP 600, PEP 656)."""
    major, minor = (int(part) for part in platform.libc_version.split(".")[:2])
    minors = range(minor, _OLDEST_MINOR[platform.libc] - 1, -1)
    if platform.libc == "musl":
        return [f"musllinux_{major}_{each}_{platform.machine}" for each in minors]
    named = [[f"manylinux_{major}_{each}", *([_LEGACY[each]] if each in _LEGACY else [])] for each in minors]
    return [f"{name}_{platform.machine}" for names in named for name in names]


def _cached(platform: Platform, asked: Sequence[str]) -> tuple[Wheel, ...] | None:
    """None where some of it is not there."""
    try:
        listed = json.loads(fsio.get(fsio.DISK, _index(platform, asked), limit_bytes=_MOST_BYTES))
        wheels = tuple(Wheel(name, digest) for name, digest in listed)
    except (OSError, OverflowError, ValueError, TypeError):
        return None
    return wheels if all(wheel.path.exists() for wheel in wheels) else None


def _index(platform: Platform, asked: Sequence[str]) -> Path:
    told = json.dumps([str(platform), *asked])
    return cache() / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"


def _fetched(platform: Platform, asked: Sequence[str]) -> tuple[Wheel, ...]:
    (make_folder("bundles") / "wheels").mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache()) as folder:
        try:
            _download(platform, ["--no-deps", *asked], Path(folder))
        except NoWheel:
            # What is installed here may be too new for the Python there. pip then chooses, with environment markers
            # of this Python and not of that one: what it forgets for that reason, the node tells when it loads it.
            _download(platform, [str(_without_marker(one)) for one in _direct(platform)], Path(folder))
        wheels = tuple(_keep(path) for path in sorted(Path(folder).glob("*.whl")))
    fsio.replace(_index(platform, asked), json.dumps([[wheel.name, wheel.sha256] for wheel in wheels]).encode())
    return wheels


def _direct(platform: Platform) -> list[Requirement]:
    return [one for extra in ("", *_extras()) for one in _asked(own.distribution(), platform, extra)]


def _without_marker(requirement: Requirement) -> Requirement:
    requirement.marker = None
    return requirement


def _keep(path: Path) -> Wheel:
    wheel = Wheel(path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    if not wheel.path.exists():
        fsio.replace(wheel.path, path.read_bytes())
    return wheel


def _download(platform: Platform, wanted: Sequence[str], into: Path) -> None:
    """Raises NoWheel for what is not made for `platform`, HoldfastError when nobody can be asked."""
    abi = f"cp{platform.python.replace('.', '')}"
    argv = [
        *fetcher(has_pip=importlib.util.find_spec("pip") is not None, uv=uv()),
        *("download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--dest", str(into)),
        *("--implementation", "cp", "--python-version", platform.python),
        *(word for name in (abi, "abi3", "none") for word in ("--abi", name)),
        *(word for tag in tags(platform) for word in ("--platform", tag)),
        *wanted,
    ]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_FETCH_S, check=False)
    except subprocess.TimeoutExpired:
        raise HoldfastError(f"the wheels for {platform} did not arrive within {_FETCH_S:g} s") from None
    if done.returncode == 0:
        return
    said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    last = said[-1] if said else f"pip ended with status {done.returncode}"
    if "No matching distribution found for " in last:
        what = last.rpartition(" for ")[2]
        raise NoWheel(f"there is no wheel of {what} for {platform}", hint="choose another Python or machine")
    raise HoldfastError(
        f"the wheels for {platform} cannot be fetched: {last}", hint="is the package registry reachable?"
    )


def uv() -> str | None:
    """The path of uv, of this Python's environment or on PATH."""
    return shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def fetcher(*, has_pip: bool, uv: str | None) -> list[str]:
    """The words that begin a command of pip. Raises HoldfastError where there is none."""
    if has_pip:
        return [sys.executable, "-m", "pip"]
    if uv:
        return [uv, "tool", "run", "pip"]
    raise HoldfastError(
        f"{sys.executable} has no pip, and there is no uv: nothing fetches what a node needs",
        hint="python -m ensurepip, or install uv",
    )
