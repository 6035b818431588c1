"""`holdfast queue`: one table, one object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast import events, runs
from holdfast.commands import queue
from holdfast.node import gpus
from holdfast.node.standby import Order, Standby
from holdfast.turn import Waiting
from holdfast.units import Accelerators
from tests.fake_nvidia import FakeNvidia, attempt_of
from tests.unit.commands.golden import matches_golden
from tests.unit.commands.scene import NOW, holdfast, make_run, status, supervised

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
    "standbys": [],
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

    with attempt_of(run) as pid:
        gpus.change(lambda book: book.given(run, [smi.uuid(1)]))
        smi.compute({0: pid, 1: pid})
        having = json.loads(holdfast("queue", "--json").out)
        gpus.change(lambda book: book.queued(waits))
        line = json.loads(holdfast("queue", "--json").out)["waiting"]
    gpus.change(lambda book: book.without(run))

    first, second = having["devices"]
    assert (first["run"], first["busy"]) == ("", f"run digits, process {pid}")
    assert (second["run"], second["busy"], second["memory_bytes"]) == ("digits", "", 80 * GIB)
    assert {"run": "digits", "wants": f"{smi.kind}:2", "since_s": NOW} in line
    assert (having["runs"], having["load_ratio"] > 0) == (0, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--gpus", "3"], 2, "the run wants 3, and of the devices of this machine 2 are such: NVIDIA {kind} 80GB"),
        (["--gpus", "H100"], 2, "the run wants H100:1, and of the devices of this machine 0 are such: NVIDIA {kind}"),
        (["--gpus", "1", "-e", "CUDA_VISIBLE_DEVICES=0"], 3, "hint: remove one of the two"),
        (["--gpus", "none at all:0"], 3, "write it like 2, A100 or A100:2"),
    ],
)
def test_a_run_that_could_never_begin_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, said: str
) -> None:
    smi = FakeNvidia(tmp_path / "bin")
    monkeypatch.setenv("PATH", smi.env["PATH"])

    refused = holdfast("run", *words, "--dry-run", "--", "true")

    assert refused.code == code
    assert said.format(kind=smi.kind) in refused.err


def test_a_plan_says_what_it_will_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = FakeNvidia(tmp_path / "bin")
    monkeypatch.setenv("PATH", smi.env["PATH"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")

    shown = holdfast("run", "--gpus", smi.kind, "--dry-run", "--", "true")

    assert f"devices      {smi.kind}:1, for this run alone; it waits until they are free\n" in shown.out
    assert "CUDA_VISIBLE_DEVICES" not in shown.out
    smi.tell("fails", "No devices were found\n")
    assert "nvidia-smi says 'No devices were found'" in holdfast("run", "--gpus", "1", "--dry-run", "--", "true").err


def test_a_book_in_a_folder_that_others_can_write_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "runtime_home", lambda: tmp_path)
    tmp_path.chmod(0o777)

    said = holdfast("queue")

    assert (said.code, said.out) == (1, "")
    assert said.err == (
        f"error: nobody can tell who has which device: {tmp_path} belongs to another user, or others may write to it\n"
    )


LINE = {"wants": "A100:2", "ahead": 1, "why": "GPU 0: run digits; GPU 1: free", "since_s": NOW - 60}
WAITS = "waits for A100:2 since 2025-11-24 15:59:00, 1 ahead; GPU 0: run digits; GPU 1: free"


def test_a_queued_run_says_what_for_wherever_one_looks() -> None:
    awaited = events.DevicesAwaited(t=NOW - 60, wants="A100:2", ahead=1, why=LINE["why"])
    run = make_run("mnist", journal=(awaited,), accelerators="A100:2")

    with supervised(run, status("mnist", state="queued", attempt=0, restarts=0, step=None, queue=LINE)):
        shown, listed = holdfast("status", "mnist"), holdfast("ps")

    assert " ".join(shown.out.split("\n")[1].split()) == WAITS
    assert listed.err == f"mnist {WAITS}\n"
    assert "mnist waits for A100:2, 1 ahead; GPU 0: run digits; GPU 1: free\n" in holdfast("explain", "mnist").out
    assert json.loads(holdfast("explain", "mnist", "--json").out)["queue"][0]["ahead"] == 1
    assert json.loads(holdfast("status", "mnist", "--json").out)["state"] == "lost"


def test_a_machine_without_devices_says_how_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    said = holdfast("queue")

    assert (said.code, said.err) == (
        0,
        f"this machine has no device: there is no program nvidia-smi on PATH\nhint: PATH is {tmp_path}\n",
    )


def test_runs_of_others_that_this_machine_stands_by_for_are_a_table_of_their_own() -> None:
    stands = {"run": "digits", "state": "watching", "why": "", "alive_s": NOW - 12, "since_s": NOW - 3600}

    assert queue.table({"": {**FOUND, "devices": [], "waiting": [], "standbys": [stands]}}) == [
        "STANDS BY FOR  STATE     LAST SIGN OF LIFE    SINCE",
        "digits         watching  2025-11-24 15:59:48  2025-11-24 15:00:00",
    ]


def test_a_run_that_goes_on_elsewhere_is_not_here_and_the_queue_tells_of_it() -> None:
    place = Standby("digits")
    place.keep(Order(run="digits", url="/nas/digits", failover_s=90.0, cwd="/", env={}, since_s=NOW))

    told = holdfast("status", "digits")
    (found,) = json.loads(holdfast("queue", "--json").out)["standbys"]

    assert (told.code, told.err.splitlines()[0]) == (
        2,
        "error: digits goes on elsewhere; this machine stands by for it",
    )
    assert (found["run"], found["state"], found["failover_s"]) == ("digits", "nobody looks", 90.0)


@pytest.mark.parametrize("order", ["{", "[]", '{"version": 2, "run": "digits", "more": 1}'])
def test_what_stands_by_and_cannot_be_read_is_told_and_hides_nothing(order: str) -> None:
    whole, broken = Standby("mnist"), Standby("digits")
    whole.keep(Order(run="mnist", url="/nas", failover_s=90.0, cwd="/", env={}, since_s=NOW))
    (whole.root / "state.json").write_text("[]")
    broken.root.mkdir()
    (broken.root / "standby.json").write_text(order)
    foreign = broken.root.with_name(".lost+found")
    foreign.mkdir()
    (foreign / "standby.json").touch()

    said = holdfast("queue", "--json")

    assert [each["run"] for each in json.loads(said.out)["standbys"]] == ["mnist"]
    assert f"{broken.root / 'standby.json'} cannot be read" in said.err
    assert said.code == 0
