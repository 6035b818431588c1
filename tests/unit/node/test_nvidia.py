"""What is made of the words of nvidia-smi."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.node import nvidia
from holdfast.node.nvidia import Computing
from holdfast.turn import Device
from tests.fake_nvidia import FakeNvidia, attempt_of


@pytest.fixture
def smi(tmp_path: Path) -> FakeNvidia:
    return FakeNvidia(tmp_path / "bin")


@pytest.fixture
def somebody() -> Iterator[int]:
    """A process of ours that belongs to no run."""
    child = subprocess.Popen(["sleep", "600"])
    yield child.pid
    child.send_signal(signal.SIGKILL)
    child.wait()


def search(smi: FakeNvidia) -> str:
    return smi.env["PATH"]


def test_devices(smi: FakeNvidia) -> None:
    first, second = nvidia.devices(search(smi))

    gib = 1 << 30
    assert first == Device(
        index=0, uuid=smi.uuid(0), name=f"NVIDIA {smi.kind} 80GB", memory_bytes=80 * gib, used_bytes=4 << 20
    )
    assert second.uuid == smi.uuid(1)


def test_devices_are_told_by_their_numbers(smi: FakeNvidia) -> None:
    smi.tell("devices", f"10, {smi.uuid(1)}, A, 9, 0\n9, {smi.uuid(0)}, A, 9, 0\n")

    assert [device.index for device in nvidia.devices(search(smi))] == [9, 10]


def test_a_divided_device_and_one_that_tells_nothing(smi: FakeNvidia) -> None:
    smi.tell("mig", f"{smi.uuid(0)}, Enabled\n{smi.uuid(1)}, [N/A]\n")
    smi.tell("devices", f"0, {smi.uuid(0)}, A, [Insufficient Permissions], [N/A]\n1, [Unknown Error], A, 9, 0\n")

    divided, silent = nvidia.devices(search(smi))

    assert (divided.unfit, divided.memory_bytes) == ("divided into instances (MIG)", None)
    assert silent.unfit == "nvidia-smi says '[Unknown Error]' of it"


def test_an_old_driver_that_does_not_know_of_division(smi: FakeNvidia) -> None:
    program = smi.folder / "nvidia-smi"
    program.write_text(program.read_text().replace("uuid,mig", "never"))

    assert [device.unfit for device in nvidia.devices(search(smi))] == ["", ""]


def test_no_program(tmp_path: Path) -> None:
    with pytest.raises(nvidia.NoDevices, match="there is no program nvidia-smi on PATH") as caught:
        nvidia.devices(str(tmp_path))

    assert caught.value.hint == f"PATH is {tmp_path}"


def test_no_device(smi: FakeNvidia) -> None:
    smi.tell("fails", "No devices were found\n")

    with pytest.raises(nvidia.NoDevices, match="says 'No devices were found'"):
        nvidia.devices(search(smi))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "fails",
            "NVIDIA-SMI has failed because it could not talk to the driver.\n",
            "ended with status 9 and says 'NV",
        ),
        ("devices", "Failed to initialize NVML\n", "says 'Failed to initialize NVML'"),
        ("devices", "\u00b2, GPU-0, A, 1, 1\n", "says '\u00b2, GPU-0"),
        ("devices", "x" * 200_000, "says what is no table: field larger than"),
    ],
)
def test_a_driver_that_fails(smi: FakeNvidia, name: str, text: str, said: str) -> None:
    smi.tell(name, text)

    with pytest.raises(nvidia.NoAnswer, match=said):
        nvidia.devices(search(smi))


def test_a_driver_that_warns_tells_all_the_same(smi: FakeNvidia) -> None:
    """As it does of a device whose infoROM is corrupted: a line more, and status 14."""
    program, warning = smi.folder / "nvidia-smi", "WARNING: infoROM is corrupted at gpu 0000:5E:00.0"
    program.write_text(f'{program.read_text()}echo "{warning}"\nexit 14\n')
    smi.compute({1: 4711})

    assert [device.uuid for device in nvidia.devices(search(smi))] == [smi.uuid(0), smi.uuid(1)]
    assert nvidia.computing(search(smi)) == [Computing(smi.uuid(1), 4711)]


def test_a_driver_that_hangs(smi: FakeNvidia, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.tell("hangs", "")
    monkeypatch.setattr(nvidia, "DEADLINE_S", 0.3)

    with pytest.raises(nvidia.NoAnswer, match=r"has not answered within 0\.3 s"):
        nvidia.computing(search(smi))


def test_a_program_that_says_too_much(smi: FakeNvidia) -> None:
    (smi.folder / "nvidia-smi").write_text("#!/bin/sh\nexec yes 0, GPU-0, A, 1, 1\n")

    with pytest.raises(nvidia.NoAnswer, match=r"nvidia-smi says more than 1\.0 MiB"):
        nvidia.devices(search(smi))


def test_a_driver_that_hangs_with_nothing_more_to_say(smi: FakeNvidia, monkeypatch: pytest.MonkeyPatch) -> None:
    (smi.folder / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 600 >/dev/null 2>&1\n")
    monkeypatch.setattr(nvidia, "DEADLINE_S", 0.3)

    with pytest.raises(nvidia.NoAnswer, match=r"has not answered within 0\.3 s"):
        nvidia.devices(search(smi))


def test_who_computes_without_having_the_device(smi: FakeNvidia, somebody: int) -> None:
    me, gone = pwd.getpwuid(os.getuid()).pw_name, 2**22 + 1
    seen = [Computing("GPU-0", somebody), Computing("GPU-1", gone), Computing("GPU-2", gone)]

    assert nvidia.strangers(seen, {"GPU-1": "/runs/a"}) == {
        "GPU-0": f"{me}, process {somebody}",
        "GPU-2": f"somebody unseen, process {gone}",
    }
    assert nvidia.strangers(seen, {"GPU-0": "/runs/a"})["GPU-0"] == f"{me}, process {somebody}"


def test_a_run_that_has_the_device_is_no_stranger(tmp_path: Path) -> None:
    run = str(tmp_path / "digits")
    with attempt_of(run) as pid:
        seen = [Computing("GPU-0", pid)]
        own, unasked = nvidia.strangers(seen, {"GPU-0": run}), nvidia.strangers(seen, {})

    assert (own, unasked) == ({}, {"GPU-0": f"run digits, process {pid}"})


def test_many_are_counted() -> None:
    found = nvidia.strangers([Computing("GPU-0", 2**22 + n) for n in range(5)], {})

    assert found["GPU-0"].endswith("; 2 more")
