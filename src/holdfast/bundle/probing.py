"""What a node is: asked in one round trip, in the user's own shell whichever that is, and judged here."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.bundle.places import Platform
from holdfast.errors import HoldfastError, HostUnreachable
from holdfast.link import remote
from holdfast.link.client import Up
from holdfast.units import show_duration, show_size

SHELL = "exec /bin/sh -s"  # the same in bash, zsh, csh and fish
OLDEST = (3, 10)
MOST_SKEW_S = 60.0
_PROBE = Path(__file__).with_name("probe.sh")
_MOST_BYTES = 1 << 16
_PLAIN = re.compile(r"/[\w./+-]+")  # paths that mean themselves in every shell
_SHARED = (
    "nfs",
    "lustre",
    "gpfs",
    "ceph",
    "fuse",
    "smb",
    "cifs",
    "beegfs",
    "afs",
    "9p",
    "virtiofs",
    "unknown",
    "panfs",
)


class Unfit(HostUnreachable):
    """A machine that is reached, and where nothing of ours can run."""


@dataclass(frozen=True, slots=True)
class Python:
    """One interpreter. `version` is () where it gave no answer."""

    path: str
    version: tuple[int, ...] = ()
    fits: bool = False  # CPython of 64 bits with the usual ABI

    @property
    def minor(self) -> str:
        """As "3.11"."""
        return ".".join(map(str, self.version[:2]))

    def __str__(self) -> str:
        return f"{self.path} ({'.'.join(map(str, self.version)) or 'which does not answer'})"


@dataclass(frozen=True, slots=True)
class Half:
    """What came of a Python before the push was cut, in a folder beside the bundles."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the probe found."""

    uid: int
    asked: str  # HOLDFAST_HOME as it is set
    home: str  # its real path, "" where it cannot be made
    place: str  # where bundles may lie: the home, or a folder whose files can be run; "" for none
    trials: Mapping[str, str]  # folder tried → "runs", "noexec", or why nothing can be written
    system: str
    machine: str
    libc: str  # "glibc 2.36", "musl 1.2.4", "" where neither is found
    files: str  # type of the file system at `place`
    free_bytes: int
    home_free_bytes: int
    ahead_s: float  # how far its clock is ahead of ours
    pythons: tuple[Python, ...]
    bundles: tuple[str, ...]
    wheels: frozenset[str]  # SHA-256 of those that are kept there
    halves: tuple[Half, ...] = ()
    kills_at_logout: bool = False  # logind does, all that a session has begun (KillUserProcesses of logind.conf)

    @property
    def bundles_folder(self) -> str:
        """Where bundles and Pythons are put."""
        return f"{self.place}/bundles"

    @property
    def is_shared(self) -> bool:
        """Whether processes of other machines may use what lies at `place`."""
        return self.files.lower().startswith(_SHARED)


def ask(up: Up, *, within_s: float) -> Facts:
    """Raises Unfit where the shell there does not answer, HostUnreachable."""
    mark = f"holdfast-{secrets.token_hex(8)}"
    began_s = time.time()
    outcome = remote.ask(up, SHELL, f"mark={mark}\n{_PROBE.read_text()}".encode(), within_s=within_s)
    middle_s = (began_s + time.time()) / 2
    told = answers(outcome.out, mark)
    if told is None:
        said = (outcome.error or outcome.err.decode(errors="replace")).strip().splitlines()
        raise Unfit(
            f"{up.alias}: the shell there gave no answer: {said[-1][:300] if said else 'it said nothing'}",
            hint=f"its start-up files read input or end it: see `echo echo here | ssh {up.alias} /bin/sh -s`",
        )
    return facts(told, middle_s)


def answers(out: bytes, mark: str) -> list[tuple[str, str]] | None:
    """(name, value) of the lines between two that are `mark`; None when they are not both there."""
    parts = re.split(rb"(?m)^.*%b\n" % mark.encode(), out)
    if len(parts) != 3 or len(parts[1]) > _MOST_BYTES:
        return None
    lines = parts[1].decode(errors="replace").splitlines()
    return [(name, value) for name, has_value, value in (line.partition("=") for line in lines) if has_value]


def facts(told: Sequence[tuple[str, str]], now_s: float) -> Facts:
    """The answers of the probe, as values; what it could not find out is empty or 0. `now_s`: when it ran, here."""
    one = dict(told)
    return Facts(
        uid=_number(one.get("uid", "")),
        asked=one.get("asked", ""),
        home=one.get("home", ""),
        place=one.get("place", ""),
        trials={name.removeprefix("trial."): value for name, value in told if name.startswith("trial.")},
        system=one.get("system", ""),
        machine=one.get("machine", ""),
        libc=one.get("libc", ""),
        files=one.get("files", ""),
        free_bytes=_number(one.get("free", "")) << 10,
        home_free_bytes=_number(one.get("home_free", "")) << 10,
        ahead_s=int(one["now"]) - now_s if one.get("now", "").isdecimal() else 0.0,
        pythons=tuple(_python(value) for name, value in told if name == "python"),
        bundles=tuple(value for name, value in told if name == "bundle"),
        wheels=frozenset(value for name, value in told if name == "wheel"),
        halves=tuple(_half(value) for name, value in told if name == "half"),
        kills_at_logout=one.get("logout", "") == "b true",
    )


def _half(line: str) -> Half:
    size, _, name = line.partition(" ")
    return Half(name, _number(size))


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _python(line: str) -> Python:
    path, _, rest = line.partition(" ")
    found = re.fullmatch(r"(\d+)\.(\d+)\.(\d+) (\w+) (True|False) ?(\w*)", rest)
    if found is None:
        return Python(path)
    *version, kind, is_64, flags = found.groups()
    usual = kind == "cpython" and is_64 == "True" and not flags
    return Python(path, tuple(int(number) for number in version), usual and bool(_PLAIN.fullmatch(path)))


def choose(alias: str, found: Facts, mine: tuple[int, int]) -> dict[Platform, Python]:
    """The Pythons there that may take the bundle, best first: its own before those that we have brought, of the
    laptop's version, `mine`, before others, then as found.

    Raises Unfit where none could.
    """
    if found.system != "Linux":
        raise Unfit(f"{alias} is a {found.system or 'machine that says not what'}: runs are for Linux")
    _check_place(alias, found)
    fit = [each for each in found.pythons if each.fits and each.version >= OLDEST]
    brought = f"{found.bundles_folder}/python-"
    chosen: dict[Platform, Python] = {}
    for python in sorted(fit, key=lambda each: (each.path.startswith(brought), each.version[:2] != mine)):
        chosen.setdefault(platform(alias, found, python.minor), python)
    return chosen


def platform(alias: str, found: Facts, minor: str) -> Platform:
    """What a wheel for a Python `minor` there has to fit. Raises Unfit."""
    kind, _, version = found.libc.partition(" ")
    if kind not in ("glibc", "musl") or not re.match(r"\d+\.\d+", version):
        raise Unfit(f"{alias} has neither glibc nor musl", hint="wheels are made for these two")
    return Platform(minor, found.machine, kind, version)


def _check_place(alias: str, found: Facts) -> None:
    said = found.trials.get("home", "it was not tried")
    wanted = "set HOLDFAST_HOME at the top of ~/.bashrc there to a folder that {}"
    if said not in ("runs", "noexec"):
        if found.home_free_bytes < 1 << 20:
            raise Unfit(
                f"{alias}: the disk of {found.asked} is full: {show_size(found.home_free_bytes)} are free",
                hint=f"free some space there, or {wanted.format('has some')}",
            )
        raise Unfit(f"{alias}: {found.asked} cannot be written: {said}", hint=wanted.format("can be written"))
    if not found.place:
        tried = ", ".join(f"{name}: {why}" for name, why in found.trials.items() if name != "home")
        raise Unfit(
            f"{alias}: {found.home} is mounted noexec, and no other place does ({tried or 'none is yours alone'})",
            hint=wanted.format("is not mounted noexec"),
        )


def no_python(alias: str, pythons: Sequence[Python], why: HoldfastError) -> Unfit:
    """For a machine that has none of its own, and where `why` one cannot be sent."""
    found = ", ".join(map(str, pythons)) or "no python3"
    by_hand = "install one there for yourself, without root: `uv python install 3.12`, or a Miniforge in your home"
    return Unfit(
        f"{alias} has no CPython of 3.10 or newer for 64 bits (found {found}), and none can be sent: {why}",
        hint="; or ".join(filter(None, [why.hint, by_hand])),
    )


def check_plain(found: Facts) -> None:
    """Raises HoldfastError where a Python in `place` could not be named in every shell."""
    if not _PLAIN.fullmatch(found.place):
        raise HoldfastError(f"{found.place!r} has a character that shells do not take as it is")


def check_space(alias: str, found: Facts, needed_bytes: int) -> None:
    """Raises Unfit where a bundle cannot be unpacked."""
    if found.free_bytes < needed_bytes:
        raise Unfit(
            f"{alias}: {show_size(found.free_bytes)} are free at {found.place}, {show_size(needed_bytes)} are needed",
            hint="free some space there, or set HOLDFAST_HOME at the top of ~/.bashrc there to another disk",
        )


def warnings(alias: str, found: Facts) -> list[str]:
    """What works and will bite."""
    said = []
    if abs(found.ahead_s) > MOST_SKEW_S:
        side = "ahead of" if found.ahead_s > 0 else "behind"
        said.append(f"{alias}: its clock is {show_duration(abs(found.ahead_s))} {side} this machine's")
    if found.kills_at_logout and found.uid:  # root is excepted, unless somebody says otherwise
        said.append(
            f"{alias}: its logind ends all that a login has begun (KillUserProcesses=yes): runs end with it, "
            "unless who looks after it names you in KillExcludeUsers"
        )
    if found.trials.get("home") == "noexec":
        said.append(f"{alias}: {found.home} is mounted noexec: our code lies in {found.place} instead")
    return said
