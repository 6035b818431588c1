"""A run's id, folder and contents before anything starts."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from holdfast import creation, runs
from holdfast.creation import Order, create, default_name, ordered, preview
from holdfast.errors import RunFileError, UsageError
from holdfast.plan import Plan
from holdfast.runs import RunDir
from holdfast.spec import Source, Spec, load


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text("print(1)\n")
    return folder


def spec_of(text: str) -> Spec:
    return load([Source("holdfast.yaml", text)], environ={"K": "hunter2"})


def order(project: Path, text: str = "run: python train.py", **changed: Any) -> Order:
    given: dict[str, Any] = {
        "spec": spec_of(text),
        "base": project,
        "copy": True,
        "environ": {"PATH": os.environ["PATH"]},
    }
    return Order(**(given | changed))


def nothing(run: RunDir, plan: Plan) -> None:
    """In the place of the journal."""


def test_an_order_is_known_by_its_token(project: Path) -> None:
    create(order(project), "digits", nothing)
    made, _ = create(order(project, token="4711"), "digits", nothing)

    assert ordered("4711") == made
    assert ordered("4712") is None


def test_a_run_directory_holds_all_that_is_needed(project: Path) -> None:
    seen: list[bool] = []
    run, plan = create(
        order(project, "run: python train.py\nsecrets: {K: null}"),
        "digits",
        lambda run, _: seen.append(run.plan.exists()),
    )

    assert seen == [False], "plan.json is written after everything else, the journal included"
    assert run.root == runs.home() / "runs" / "digits"
    assert run.root.stat().st_mode & 0o777 == 0o700
    assert Plan.from_json(json.loads(run.plan.read_text())) == plan
    assert spec_of(run.spec.read_text()) == spec_of("run: python train.py\nsecrets: {K: null}")
    assert (run.code / "train.py").read_text() == "print(1)\n"
    assert plan.cwd == str(run.code)
    assert (run.lib / "holdfast" / "runs.py").is_file()
    assert [path.name for path in run.lib.iterdir()] == ["holdfast"]
    code = json.loads((run.root / "code.json").read_text())
    assert (code["snapshot"], code["files"], code["workdir"]) == (True, 1, str(project))
    assert "hunter2" not in "".join(path.read_text() for path in run.root.iterdir() if path.is_file())
    assert not [path for path in run.root.iterdir() if path.is_file() and path.stat().st_mode & 0o077]


def test_names_that_are_taken_get_numbers(project: Path) -> None:
    made = [create(order(project), "digits", nothing)[0].id for _ in range(3)]
    assert made == ["digits", "digits-2", "digits-3"]


def test_the_name_of_a_run_that_this_machine_stands_by_for_is_kept_for_that_one(project: Path) -> None:
    awaited = runs.home() / "standbys" / "digits" / "standby.json"
    awaited.parent.mkdir(parents=True)
    awaited.touch()

    assert preview(order(project), "digits").run == "digits-2"
    assert create(order(project), "digits", nothing)[0].id == "digits-2"
    assert create(order(project, takes_over=True), "digits", nothing)[0].id == "digits"


def test_callers_at_the_same_time_get_different_runs(project: Path) -> None:
    made: list[str] = []
    start = threading.Barrier(8)

    def one() -> None:
        start.wait()
        made.append(create(order(project), "digits", nothing)[0].id)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(["digits", *(f"digits-{number}" for number in range(2, 9))])


def test_an_id_is_taken_exactly_or_not_at_all(project: Path) -> None:
    assert create(order(project, id="job-7"), "digits", nothing)[0].id == "job-7"
    with pytest.raises(UsageError, match="there is a run 'job-7' already"):
        create(order(project, id="job-7"), "digits", nothing)


@pytest.mark.parametrize("given", ["job-7", None])
def test_what_a_killed_caller_left_is_taken_over(project: Path, given: str | None) -> None:
    left = runs.home() / "runs" / "job-7"
    (left / "code" / "sub").mkdir(parents=True)
    (left / "code.json").write_text("{")
    (left / ".plan.json.0123abcd.tmp").write_text("")

    run, _ = create(order(project, id=given), "job-7", nothing)

    assert run.root == left
    assert not (run.code / "sub").exists()
    assert json.loads((run.root / "code.json").read_text())["version"] == 1


@pytest.mark.parametrize("mine", ["lock", "results.csv", "plan.json.tmp"])
def test_a_folder_with_anything_else_in_it_is_not_emptied(project: Path, mine: str) -> None:
    """A shim has been there and the plan was lost, or a person made it."""
    begun = runs.home() / "runs" / "job-7"
    (begun / "code").mkdir(parents=True)
    (begun / mine).write_text("{}")

    assert create(order(project), "job-7", nothing)[0].id == "job-7-2"
    with pytest.raises(UsageError, match="there is a run 'job-7' already"):
        create(order(project, id="job-7"), "digits", nothing)
    assert {path.name for path in begun.iterdir()} == {"code", mine}


def test_an_id_that_somebody_is_just_making_is_left_to_them(project: Path) -> None:
    def second(run: RunDir, plan: Plan) -> None:
        with pytest.raises(UsageError, match="there is a run 'job-7' already"):
            create(order(project, id="job-7"), "digits", nothing)

    run, _ = create(order(project, id="job-7"), "digits", second)
    assert run.plan.is_file()


def test_in_place_nothing_is_copied(project: Path) -> None:
    run, plan = create(order(project, copy=False), "digits", nothing)

    assert plan.cwd == str(project)
    assert not run.code.exists()
    assert json.loads((run.root / "code.json").read_text())["snapshot"] is False


def test_a_run_that_could_not_be_made_leaves_nothing(project: Path) -> None:
    def fails(run: RunDir, plan: Plan) -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        create(order(project), "digits", fails)
    assert list((runs.home() / "runs").iterdir()) == []


def test_runs_kept_inside_the_project_are_not_copied(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(project / "state"))

    create(order(project), "digits", nothing)
    run, _ = create(order(project), "digits", nothing)

    assert [path.name for path in run.code.iterdir()] == ["train.py"]


def test_a_home_that_cannot_be_written_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(project / "train.py" / "home"))
    with pytest.raises(UsageError, match="cannot be written: Not a directory") as caught:
        create(order(project), "digits", nothing)
    assert "HOLDFAST_HOME" in caught.value.hint


@pytest.mark.parametrize(("words", "said", "hint"), [
    ("[no-such-program, x]", "there is no program 'no-such-program' on PATH", "is it installed?"),
    ("[train.py]", "there is no program 'train.py' on PATH", "python train.py"),
    ("[./train.py]", "./train.py is not executable", "chmod +x"),
    ("[./other.py]", "there is no program ./other.py in", ""),
])  # fmt: skip
def test_a_missing_program_is_told_before_anything_is_made(project: Path, words: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        preview(order(project, f"run: {words}"), "digits")
    assert said in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2
    assert not runs.home().exists()


def test_python_where_there_is_only_python3(project: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "python3"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with pytest.raises(UsageError) as caught:
        preview(order(project, "run: [python, train.py]", environ={"PATH": str(program.parent)}), "digits")
    assert caught.value.hint == "python3 is there"


def test_folders_and_interpreters_that_are_not_there_are_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFileError, match=r"workdir .*/nowhere is not a folder"):
        preview(order(project, "run: x\nworkdir: nowhere"), "digits")
    with pytest.raises(RunFileError, match=r"environment\.python: .*/bin/python is not a program"):
        preview(order(project, "run: x\nenvironment: {python: .venv/bin/python}"), "digits")
    monkeypatch.setenv("HOME", str(project))
    with pytest.raises(RunFileError, match="is not the folder of a project"):
        preview(order(project), "digits")
    preview(order(project, copy=False), "digits")


def test_checkpoints_of_another_run_are_not_taken_over(project: Path) -> None:
    (project / "ckpt").mkdir()
    preview(order(project, "run: x\ncheckpoint: {dir: ckpt}"), "digits")
    (project / "ckpt" / "format.json").write_text("{}")
    with pytest.raises(UsageError, match="holds the checkpoints of another run"):
        preview(order(project, "run: x\ncheckpoint: {dir: ckpt}"), "digits")


def test_of_two_runs_made_for_one_checkpoint_folder_the_second_is_refused(project: Path, tmp_path: Path) -> None:
    text = f"run: x\ncheckpoint: {{dir: {tmp_path}/ckpt}}"
    create(order(project, text), "first", nothing)

    with pytest.raises(UsageError, match="ckpt holds the checkpoints of another run"):
        create(order(project, text), "second", nothing)

    assert [run.id for run in runs.every()] == ["first"]


def test_a_run_that_could_not_be_made_gives_its_checkpoint_folder_back(project: Path, tmp_path: Path) -> None:
    def fails(run: RunDir, plan: Plan) -> None:
        raise RuntimeError("no journal")

    wanted = order(project, f"run: x\ncheckpoint: {{dir: {tmp_path}/ckpt}}")
    with pytest.raises(RuntimeError, match="no journal"):
        create(wanted, "digits", fails)

    create(wanted, "digits", nothing)


def test_a_checkpoint_folder_that_cannot_be_written_is_refused(project: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"checkpoint\.dir .*/file/ckpt cannot be written: Not a directory"):
        create(order(project, f"run: x\ncheckpoint: {{dir: {tmp_path}/file/ckpt}}"), "digits", nothing)
    assert list(runs.every()) == []


def test_a_preview_shows_the_id_that_would_be_given(project: Path) -> None:
    create(order(project), "digits", nothing)
    assert preview(order(project), "digits").run == "digits-2"


@pytest.mark.parametrize(("run", "from_file", "name"), [
    ("python train.py", True, "project"),
    ("[python, examples/train.py, --lr, '3']", False, "train"),
    ("[python3.11, -m, pkg.train]", False, "pkg.train"),
    ("[./my prog!, x.csv]", False, "x.csv"),
    ("[bash]", False, "bash"),
    ("['...']", False, "run"),
])  # fmt: skip
def test_names_when_none_is_given(project: Path, run: str, from_file: bool, name: str) -> None:
    assert default_name(spec_of(f"run: {run}"), project, from_file=from_file) == name


def test_candidates_never_end(project: Path) -> None:
    names = creation._candidates(order(project), "a")
    assert [next(names) for _ in range(3)] == ["a", "a-2", "a-3"]
