from __future__ import annotations

import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from holdfast.checkpoint import lease
from holdfast.checkpoint.commit import commit
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.target import find
from holdfast.commands.arguments import fitted
from holdfast.commands.ckpt import prune
from holdfast.commands.ckpt.selection import target
from holdfast.plan import Best, CheckpointPlan, Keep
from holdfast.runs import RunDir
from tests.slotparts import part_of
from tests.unit.commands.golden import matches_golden
from tests.unit.commands.scene import NOW, holdfast, make_run
from tests.waiting import until


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with two small checkpoints, the earlier one the better."""
    best = Keep(best=Best(metric="val_loss"))
    made = make_run(checkpoint=CheckpointPlan(dir=str(tmp_path / "checkpoints"), keep=best))
    folder = Folder(tmp_path / "checkpoints")
    folder.open()
    lease.write(folder, Lease(term=1, claim="a", attempt=1, base=None, owner={"pid": 1}, time_s=NOW - 100))
    for sequence, loss in ((1, 0.25), (2, 0.5)):
        fields = {"sequence": sequence, "step": 10 * sequence, "time_s": NOW - 100.0 / sequence, "term": 1}
        commit(folder, [part_of(seed=sequence, metrics={"val_loss": loss}, sizes=(300, 70), **fields)])
    return made


def test_ls_has_a_line_a_checkpoint_newest_last(run: RunDir) -> None:
    lines = holdfast("ckpt", "ls").out.splitlines()

    assert lines[0].split() == ["CHECKPOINT", "STEP", "EPOCH", "AGE", "SIZE", "ADDED", "TIER", "REASON", "METRICS"]
    assert [line.split()[:2] for line in lines[1:]] == [["1-1", "10"], ["1-2", "20"]]
    assert "1 min 40 s ago" in lines[1]
    assert "val_loss 0.25" in lines[1]


def test_ls_json_has_the_same_facts(run: RunDir) -> None:
    found = json.loads(holdfast("ckpt", "ls", "digits", "--json").out)

    assert [(one["step"], one["live"], one["metrics"]) for one in found] == [
        (10, True, {"val_loss": 0.25}),
        (20, True, {"val_loss": 0.5}),
    ]
    assert all(Path(one["path"]).is_file() for one in found)


def test_ls_of_a_run_that_saved_nothing_says_so() -> None:
    make_run("young")

    said = holdfast("ckpt", "ls", "young")

    assert (said.out, said.code) == ("", 0)
    assert "no checkpoint yet" in said.err


@pytest.mark.parametrize(("target", "step"), [("digits", 20), ("digits@10", 10), ("digits@best", 10)])
def test_show_tells_what_one_checkpoint_holds(run: RunDir, target: str, step: int) -> None:
    out = holdfast("ckpt", "show", target).out

    assert f"step        {step}, epoch 2" in out
    assert "trainable   1 tensor, 300 B" in out


def test_show_of_a_step_that_was_never_saved(run: RunDir) -> None:
    said = holdfast("ckpt", "show", "digits@15")

    assert (said.code, said.err.splitlines()[0]) == (2, "error: digits has no checkpoint at step 15")


def test_verify_of_what_is_whole(run: RunDir) -> None:
    said = holdfast("ckpt", "verify", "digits")

    assert (said.code, said.out) == (0, "1-1  intact\n1-2  intact\n")


def test_verify_names_the_damage_and_exits_with_12(run: RunDir, tmp_path: Path) -> None:
    newest = json.loads(holdfast("ckpt", "show", "digits", "--json").out)
    (pack,) = tmp_path.glob(f"checkpoints/packs/*/{newest['manifest']['packs'][0]['name']}*")
    raw = bytearray(pack.read_bytes())
    raw[100] ^= 1
    pack.write_bytes(raw)

    said = holdfast("ckpt", "verify", "digits")

    assert said.code == 12
    assert said.out.startswith("1-1  intact\n1-2  ")
    assert "intact" not in said.out.splitlines()[1]
    assert holdfast("ckpt", "verify", "digits@10").code == 0


def test_verify_names_a_manifest_that_cannot_be_read(run: RunDir, tmp_path: Path) -> None:
    newest = max((tmp_path / "checkpoints" / "manifests").iterdir())
    newest.write_bytes(newest.read_bytes()[:-5])

    said = holdfast("ckpt", "verify", "digits", "--json")

    told = {one["checkpoint"]: one["problems"] for one in json.loads(said.out)}
    assert said.code == 12
    assert told["1-1"] == []
    assert told["folder"]


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("ckpt-ls", ["ls", "digits"]),
        ("ckpt-ls-json", ["ls", "digits", "--json"]),
        ("ckpt-show", ["show", "digits@10", "--tensors"]),
        ("ckpt-show-json", ["show", "digits@10", "--tensors", "--json"]),
        ("ckpt-verify-json", ["verify", "--all", "--json"]),
        ("ckpt-diff", ["diff", "digits@10", "digits@20"]),
        ("ckpt-diff-json", ["diff", "digits@1-1", "digits@best", "--json"]),
        ("ckpt-export-json", ["export", "digits", "/nowhere/at/all.safetensors", "--json"]),
    ],
)
def test_what_is_said_is_what_the_golden_file_says(run: RunDir, tmp_path: Path, name: str, argv: list[str]) -> None:
    said = holdfast("ckpt", *argv)

    matches_golden(f"{name}.txt", said.out.replace(str(tmp_path), "FOLDER") + said.err)


def test_a_folder_is_named_by_its_path(run: RunDir, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"

    assert "1-2" in holdfast("ckpt", "ls", str(root)).out
    assert "step        10" in holdfast("ckpt", "show", f"{root}@10").out
    assert holdfast("ckpt", "show", f"{root}@best").code == 2


def test_text_that_would_steer_the_terminal_is_spelled_out(run: RunDir, tmp_path: Path) -> None:
    part = part_of(
        seed=9, sequence=3, term=1, step=30, reason="\x1b[2Jgone \u202etxt", metrics={"\x07": 1.0}, time_s=1e300
    )
    commit(Folder(tmp_path / "checkpoints"), [part])

    for argv in (("ls", "digits"), ("show", "digits@30")):
        said = holdfast("ckpt", *argv)
        assert said.code == 0
        assert "\\x1b[2Jgone \\u202etxt" in said.out
        assert said.out.replace("\n", "").isprintable()


def test_a_checkpoint_without_its_packs_is_listed_as_such(run: RunDir, tmp_path: Path) -> None:
    newest = json.loads(holdfast("ckpt", "ls", "digits", "--json").out)[-1]
    packs = json.loads(holdfast("ckpt", "show", "digits", "--json").out)["manifest"]["packs"]
    for path in tmp_path.glob(f"checkpoints/packs/*/{packs[0]['name']}*"):
        path.unlink()

    assert newest["complete"]
    assert "1-2 (packs missing)" in holdfast("ckpt", "ls", "digits").out


def test_tensors_that_overlap_are_damage_to_verify(run: RunDir, tmp_path: Path) -> None:
    part = part_of(seed=9, sequence=3, term=1, step=30)
    chunk = part.table["chunks"][0]
    chunk["tensors"].append(dict(chunk["tensors"][0]))
    commit(Folder(tmp_path / "checkpoints"), [part])

    said = holdfast("ckpt", "verify", "digits@30")

    assert (said.code, "is not stored whole" in said.out) == (12, True)


@pytest.fixture
def long_run(run: RunDir, tmp_path: Path) -> RunDir:
    """Six checkpoints, of which the first is the best, one an hour."""
    for sequence in range(3, 7):
        fields = {"sequence": sequence, "step": 10 * sequence, "time_s": NOW - 3600 * (7 - sequence), "term": 1}
        commit(Folder(tmp_path / "checkpoints"), [part_of(seed=sequence, metrics={"val_loss": 1.0}, **fields)])
    return run


def steps(*more: str) -> list[int]:
    return [one["step"] for one in json.loads(holdfast("ckpt", "ls", "digits", "--json", *more).out)]


def test_a_pinned_checkpoint_is_refused_to_rm_until_it_is_unpinned(long_run: RunDir) -> None:
    assert holdfast("ckpt", "pin", "digits@20", "--reason", "paper").code == 0
    assert "1-2 (pinned)" in holdfast("ckpt", "ls", "digits").out
    assert "pinned      paper\n" in holdfast("ckpt", "show", "digits@20").out
    assert json.loads(holdfast("ckpt", "show", "digits@20", "--json").out)["pin"]["reason"] == "paper"

    refused = holdfast("ckpt", "rm", "digits@20", "--yes")

    assert (refused.code, "is pinned" in refused.err) == (2, True)
    assert holdfast("ckpt", "unpin", "digits@20").code == 0
    assert holdfast("ckpt", "rm", "digits@20", "--yes").code == 0
    assert steps() == [10, 30, 40, 50, 60]
    assert holdfast("ckpt", "verify", "digits").code == 0
    assert holdfast("ckpt", "unpin", "digits@30").code == 2


@pytest.mark.parametrize(
    "argv",
    [
        ["rm", "digits@60", "-y"],
        ["rm", "digits@50", "-y"],
        ["rm", "digits", "-y"],
        ["rm", "digits@30"],
        ["unpin", "digits"],
    ],
)
def test_what_a_resume_needs_is_not_named_or_not_confirmed_is_refused(long_run: RunDir, argv: list[str]) -> None:
    said = holdfast("ckpt", *argv)

    assert (said.code, steps()) == (2, [10, 20, 30, 40, 50, 60])
    assert said.err.startswith("error: ")


def test_prune_takes_what_is_old_and_neither_best_nor_newest(long_run: RunDir) -> None:
    everything = json.loads(holdfast("ckpt", "prune", "digits", "--older-than", "1s", "--dry-run", "--json").out)
    assert [one["step"] for one in everything["removed"]] == [20, 30, 40]

    shown = json.loads(holdfast("ckpt", "prune", "--all", "--older-than", "150m", "--dry-run", "--json").out)
    assert [one["step"] for one in shown["removed"]] == [30, 40]
    assert steps() == [10, 20, 30, 40, 50, 60]

    assert holdfast("ckpt", "prune", "digits", "--older-than", "150m").code == 2
    assert holdfast("ckpt", "prune", "digits", "--older-than", "150m", "--keep-last", "3", "--yes").code == 0
    assert steps() == [10, 20, 40, 50, 60]
    assert holdfast("ckpt", "verify", "digits").code == 0


def test_prune_names_its_runs(long_run: RunDir) -> None:
    assert holdfast("ckpt", "prune", "--older-than", "1d", "--yes").code == 2
    assert holdfast("ckpt", "prune", "--all", "digits", "--older-than", "1d", "--yes").code == 2


def test_a_folder_that_somebody_writes_to_is_left_alone(long_run: RunDir, tmp_path: Path) -> None:
    owner = Folder(tmp_path / "checkpoints")
    owner.own()

    said = holdfast("ckpt", "rm", f"{tmp_path / 'checkpoints'}@30", "--yes")

    owner.leave()
    assert (said.code, "a live run writes to" in said.err) == (11, True)
    assert steps() == [10, 20, 30, 40, 50, 60]


def test_a_verb_about_all_checkpoints_refuses_one(long_run: RunDir) -> None:
    for argv in (["prune", "digits@30", "--older-than", "1s", "--yes"], ["sync", "digits@30"]):
        said = holdfast("ckpt", *argv)
        assert (said.code, "not one" in said.err) == (2, True)

    assert steps() == [10, 20, 30, 40, 50, 60]


def test_ls_of_one_checkpoint_shows_that_one(long_run: RunDir) -> None:
    assert [30] == [one["step"] for one in json.loads(holdfast("ckpt", "ls", "digits@30", "--json").out)]
    assert holdfast("ckpt", "ls", "digits@31").code == 2


def test_what_retention_has_taken_meanwhile_is_no_failure_of_prune(long_run: RunDir) -> None:
    meant = target("digits@30")
    info = find(meant)
    assert holdfast("ckpt", "rm", "digits@30", "--yes").code == 0

    assert prune._remove(meant, info) == ""


def test_names_that_say_no_more_than_run_and_step_are_not_shown(run: RunDir, tmp_path: Path) -> None:
    into = Folder(tmp_path / "checkpoints")
    commit(into, [part_of(seed=8, sequence=3, step=30, time_s=NOW - 1, term=1, name="digits-00000030")])
    assert "NAME" not in holdfast("ckpt", "ls", "digits").out

    commit(into, [part_of(seed=9, sequence=4, step=40, time_s=NOW - 1, term=1, name="epoch-2-loss-0.1")])

    assert "epoch-2-loss-0.1" in holdfast("ckpt", "ls", "digits").out


def test_hints_fit_what_was_asked(run: RunDir, tmp_path: Path) -> None:
    empty = tmp_path / "an empty one"
    (empty / "manifests").mkdir(parents=True)
    folder = tmp_path / "with a blank"
    shutil.copytree(tmp_path / "checkpoints", folder)

    assert "hint:" not in holdfast("ckpt", "ls", str(empty)).err  # nothing saves into a folder that is no run's
    assert f"hint: holdfast ckpt ls --all '{folder}'" in holdfast("ckpt", "show", f"{folder}@7").err
    assert "hint: name a step" in holdfast("ckpt", "show", f"{folder}@best").err


def test_a_table_ends_at_the_edge_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = pty.openpty()
    monkeypatch.setenv("COLUMNS", "20")
    with open(terminal, "w") as out:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr("sys.stdout", out)
        assert fitted(["x" * 21, "x" * 20]) == ["x" * 19 + "…", "x" * 20]
    os.close(controller)


def test_import_takes_files_and_folders_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")

    said = holdfast("ckpt", "import", str(tmp_path / "pipe.pt"), str(tmp_path / "into"))

    assert (said.code, said.err.splitlines()[0]) == (2, f"error: {tmp_path / 'pipe.pt'} is no file")


def test_an_import_that_is_interrupted_leaves_no_packs(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(64 << 20, dtype=torch.int32)}, tmp_path / "big.pt")  # so many packs take a while
    for into in (tmp_path / str(number) for number in itertools.count()):
        words = [sys.executable, "-m", "holdfast", "ckpt", "import", str(tmp_path / "big.pt"), str(into)]
        importing = subprocess.Popen(words, stdout=subprocess.PIPE)
        until(lambda: any(into.glob("packs/*/*")))  # noqa: B023 - used at once

        importing.send_signal(signal.SIGINT)

        said = importing.communicate(timeout=60)
        if not any(into.glob("manifests/*")):
            break  # else it was through before it was interrupted

    assert (said, importing.returncode) == ((b"", None), 130)
    assert not any(into.glob("packs/*/*"))


def test_verify_sends_to_the_mirror_when_nothing_here_is_intact(run: RunDir, tmp_path: Path) -> None:
    packs = list(tmp_path.glob("checkpoints/packs/*/*"))
    packs[0].unlink()
    assert "hint: a resume takes the newest intact one" in holdfast("ckpt", "verify", "digits").err
    for pack in packs[1:]:
        pack.unlink()

    assert "hint: none is left to continue from" in holdfast("ckpt", "verify", "digits").err
    run.mirror.write_text(json.dumps({"held": [[1, 2]]}))
    assert "hint: holdfast ckpt pull digits brings" in holdfast("ckpt", "verify", "digits").err
