"""The devices of this machine and who computes on them, as the program nvidia-smi tells it."""

from __future__ import annotations

import csv
import os
import pwd
import select
import shutil
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import HoldfastError, UsageError
from holdfast.process import environment
from holdfast.turn import Device, fitting
from holdfast.units import parse_accelerators, show_size

PROGRAM = "nvidia-smi"
DEADLINE_S = 15.0  # a driver that is not kept loaded takes seconds to come up
MOST_BYTES = 1 << 20
_END_S = 1.0
_NONE = "No devices were found"
_WARNING, _WARNED = (
    "WARNING:",
    14,
)  # lines, and the status, of one that tells all the same: a device's infoROM is corrupted
_DEVICE = "index,uuid,name,memory.total,memory.used"
_MIB = 1 << 20
_SHOWN = 3  # processes of a device


class NoDevices(UsageError):
    """The machine has no device, as far as anybody can tell."""


class NoAnswer(HoldfastError):
    """nvidia-smi is there and does not tell."""


@dataclass(frozen=True, slots=True)
class Computing:
    """A process that computes on a device."""

    uuid: str
    pid: int


def devices(path: str | None = None) -> list[Device]:
    """All devices, by their index; `path` is searched for the program, PATH by default. Raises NoDevices, NoAnswer."""
    rows = _rows(_asked(path, f"--query-gpu={_DEVICE}"), 5)
    if not rows:
        raise NoDevices(f"this machine has no device: {PROGRAM} says {_NONE!r}")
    divided = _divided(path)  # last: where the driver hangs or fails, it has said so by now
    return sorted((_device(row, divided) for row in rows), key=lambda device: device.index)


def must_have(accelerators: str, path: str | None = None) -> None:
    """Raise NoDevices when this machine will never have so many devices of that kind, and NoAnswer."""
    wants, found = parse_accelerators(accelerators), devices(path)
    fit = fitting(wants, found)
    if len(fit) < wants.count:
        there = ", ".join(
            dict.fromkeys(device.name + (f", {device.unfit}" if device.unfit else "") for device in found)
        )
        raise NoDevices(
            f"the run wants {accelerators}, and of the devices of this machine {len(fit)} are such: {there}",
            hint="holdfast queue shows what there is; resources.accelerators says what is wanted",
        )


def computing(path: str | None = None) -> list[Computing]:
    """Who computes on which device now. Raises NoDevices, NoAnswer."""
    rows = _rows(_asked(path, "--query-compute-apps=gpu_uuid,pid,used_memory"), 3)
    return [Computing(uuid, int(pid)) for uuid, pid, _ in rows if pid.isdecimal()]


def run_of(pid: int) -> str:
    """The real path of the run that a process belongs to; empty for none, and for what is not ours to see."""
    environ = environment(pid)
    run = environ.get("HOLDFAST_RUN_DIR", "") if "HOLDFAST_ATTEMPT" in environ else ""
    return run and str(Path(run).resolve())


def strangers(seen: Iterable[Computing], claims: dict[str, str]) -> dict[str, str]:
    """uuid → who computes there though the device is not theirs by `claims`: user or run, and pid.

    On a device that a run has, a process that nobody here can see is taken for the run's own: in a container pids are
    those of the machine around it.
    """
    found: dict[str, list[str]] = {}
    for one in seen:
        holder, user, run = claims.get(one.uuid), _user(one.pid), run_of(one.pid)
        if holder is None or (run != holder and user):
            who = f"run {Path(run).name}" if run else user or "somebody unseen"
            found.setdefault(one.uuid, []).append(f"{who}, process {one.pid}")
    return {uuid: _few(who) for uuid, who in found.items()}


def _few(who: list[str]) -> str:
    more = len(who) - _SHOWN
    return "; ".join([*who[:_SHOWN], *([f"{more} more"] if more > 0 else [])])


def _user(pid: int) -> str:
    """Whose process it is; empty when there is none of that number here."""
    try:
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _device(row: list[str], divided: set[str]) -> Device:
    index, uuid, name, memory, used = row
    unfit = "divided into instances (MIG)" if uuid in divided else ""
    if not unfit and not uuid.startswith("GPU-"):
        unfit = f"{PROGRAM} says {uuid!r} of it"
    return Device(
        index=int(index), uuid=uuid, name=name, memory_bytes=_bytes(memory), used_bytes=_bytes(used), unfit=unfit
    )


def _bytes(mebibytes: str) -> int | None:
    """None for `[N/A]`, `[Insufficient Permissions]` and the like."""
    return int(mebibytes) * _MIB if mebibytes.isdecimal() else None


def _divided(path: str | None) -> set[str]:
    """The devices in MIG mode. Old drivers do not know the question, and have none."""
    with suppress(NoAnswer):
        answer = _asked(path, "--query-gpu=uuid,mig.mode.current")
        return {row[0] for row in _parsed(answer) if row[1:] == ["Enabled"]}
    return set()


def _rows(answer: str, columns: int) -> list[list[str]]:
    rows = [row for row in _parsed(answer) if row]
    for row in rows:
        if len(row) != columns or (columns == 5 and not row[0].isdecimal()):
            raise NoAnswer(f"{PROGRAM} says {', '.join(row)[:200]!r}", hint=f"{PROGRAM} -L shows what is wrong")
    return rows


def _parsed(answer: str) -> list[list[str]]:
    lines = [line for line in answer.splitlines() if not line.startswith(_WARNING)]
    try:
        return list(csv.reader(lines, skipinitialspace=True))
    except csv.Error as error:
        raise NoAnswer(f"{PROGRAM} says what is no table: {error}", hint=f"{PROGRAM} -L shows what is wrong") from error


def _asked(path: str | None, question: str) -> str:
    program = shutil.which(PROGRAM, path=path)
    if program is None:
        searched = path if path is not None else os.environ.get("PATH", os.defpath)
        raise NoDevices(
            f"this machine has no device: there is no program {PROGRAM} on PATH", hint=f"PATH is {searched}"
        )
    child = subprocess.Popen(
        [program, question, "--format=csv,noheader,nounits"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said = _heard(child)
    finally:
        _give_up(child)
    if child.returncode not in (0, _WARNED) and _NONE not in said:
        told = said.strip().splitlines()[:1] or ["nothing"]
        raise NoAnswer(f"{PROGRAM} ended with status {child.returncode} and says {told[0][:200]!r}")
    return "" if _NONE in said else said


def _heard(child: subprocess.Popen[bytes]) -> str:
    """All that it says until it ends. Raises NoAnswer when that takes too long, or is too much."""
    assert child.stdout
    said, end_s = bytearray(), time.monotonic() + DEADLINE_S
    coming = select.poll()
    coming.register(child.stdout)
    try:
        while coming.poll(max(0.0, end_s - time.monotonic()) * 1000):
            part = os.read(child.stdout.fileno(), 1 << 16)
            if not part:
                child.wait(max(0.0, end_s - time.monotonic()))
                return said.decode(errors="replace")
            said += part
            if len(said) > MOST_BYTES:
                raise NoAnswer(
                    f"{PROGRAM} says more than {show_size(MOST_BYTES)}: that is no list of devices",
                    hint=f"is it NVIDIA's? command -v {PROGRAM}",
                )
    except subprocess.TimeoutExpired:
        pass
    hint = "the driver hangs: dmesg may say why, and often only a reboot helps"
    raise NoAnswer(f"{PROGRAM} has not answered within {DEADLINE_S:g} s", hint=hint)


def _give_up(child: subprocess.Popen[bytes]) -> None:
    """Whom the kernel does not let go of is left behind."""
    assert child.stdout
    child.stdout.close()
    child.kill()
    with suppress(subprocess.TimeoutExpired):
        child.wait(_END_S)
