"""`holdfast queue`: one table, one object."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from holdfast.commands import queue
from holdfast.node import gpus
from holdfast.turn import Waiting
from holdfast.units import Accelerators
from tests.fake_nvidia import FakeNvidia
from tests.unit.commands.golden import matches_golden
from tests.unit.commands.scene import NOW, holdfast

GIB = 1 << 30


def device(index: int, **facts: Any) -> dict[str, Any]:
    name = "NVIDIA A100-SXM4-80GB"
    plain = {"index": index, "uuid": f"GPU-{index}", "name": name, "memory_bytes": 80 * GIB, "used_bytes": 0}
    return {**plain, "run": "", "busy": "", **facts}


FOUND = {
    "devices": [
        device(0, run="digits", used_bytes=31 * GIB),
        device(1, busy="bob, process 4711", used_bytes=GIB),
        device(2, memory_bytes=None, busy="divided into instances (MIG)"),
        device(3),
    ],
    "waiting": [{"run": "mnist", "wants": "A100:2", "since_s": NOW - 60}],
    "runs": 2,
    "load_ratio": 0.5,
}


def test_the_table_reads_as_in_the_guide() -> None:
    matches_golden("queue.txt", "\n".join(queue.table({"": FOUND})) + "\n")


def test_several_machines_are_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    queue.together({"gpu-a": FOUND, "gpu-b": {**FOUND, "devices": [], "waiting": []}}, False)
    matches_golden("queue-hosts.txt", capsys.readouterr().out)

    queue.together({"gpu-a": FOUND}, True)
    assert json.loads(capsys.readouterr().out) == [{"host": "gpu-a", **FOUND}]


def test_the_object_is_what_the_machine_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = FakeNvidia(tmp_path / "bin")
    monkeypatch.setenv("PATH", smi.env["PATH"])
    run = str(tmp_path / "digits")
    waits = Waiting(dir=run, wants=Accelerators(count=2, kind=smi.kind), since_s=NOW)
    env = {**os.environ, "HOLDFAST_RUN_DIR": run, "HOLDFAST_ATTEMPT": "1"}

    with subprocess.Popen(["sleep", "600"], env=env) as child:
        gpus.change(lambda book: book.given(run, [smi.uuid(1)]))
        smi.compute({0: child.pid, 1: child.pid})
        having = json.loads(holdfast("queue", "--json").out)
        gpus.change(lambda book: book.queued(waits))
        line = json.loads(holdfast("queue", "--json").out)["waiting"]
        child.kill()
    gpus.change(lambda book: book.without(run))

    first, second = having["devices"]
    assert (first["run"], first["busy"]) == ("", f"run digits, process {child.pid}")
    assert (second["run"], second["busy"], second["memory_bytes"]) == ("digits", "", 80 * GIB)
    assert {"run": "digits", "wants": f"{smi.kind}:2", "since_s": NOW} in line
    assert (having["runs"], having["load_ratio"] > 0) == (0, True)


def test_a_machine_without_devices_says_how_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    said = holdfast("queue")

    assert (said.code, said.err) == (
        0,
        f"this machine has no device: there is no program nvidia-smi on PATH\nhint: PATH is {tmp_path}\n",
    )
