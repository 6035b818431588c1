"""`holdfast run` up to the point where processes start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from holdfast.checkpoint.commit import commit
from holdfast.checkpoint.folder import Folder
from holdfast.commands.dry_run import describe
from holdfast.commands.run import command, read_sources
from holdfast.commands.secrets import secret_values
from holdfast.errors import HoldfastError, RunFileError, UsageError
from holdfast.plan import Facts, Plan, make
from holdfast.spec import Source, Spec, load
from tests.slotparts import part_of


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def call(*words: str) -> Result:
    return CliRunner().invoke(command, list(words), catch_exceptions=False, standalone_mode=False)


def planned(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call("--dry-run", "--json", *words).stdout)
    return found


def test_a_command_runs_in_place_and_without_a_shell(project: Path, tmp_path: Path) -> None:
    plan = planned("--", "sh", "-c", "echo $HOME", "--name", "x")

    assert plan["argv"] == ["sh", "-c", "echo $HOME", "--name", "x"]
    assert (plan["cwd"], plan["name"]) == (str(project), "x")
    assert not (tmp_path / "home").exists(), "a dry run makes nothing"


def test_a_run_file_runs_in_a_snapshot(project: Path, tmp_path: Path) -> None:
    (project / "holdfast.yaml").write_text("run: python train.py\n")

    assert planned()["cwd"] == str(tmp_path / "home" / "runs" / "project" / "code")
    assert planned("--in-place")["cwd"] == str(project)
    assert planned("--snapshot", "--", "sh")["cwd"].endswith("/runs/sh/code")


def test_relative_paths_stand_on_the_folder_of_the_file(project: Path) -> None:
    (project / "sub").mkdir()
    (project / "sub" / "h.yaml").write_text("run: x\ncheckpoint: {dir: ckpt}\n")

    assert planned("-f", "sub/h.yaml")["checkpoint"]["dir"] == str(project / "sub" / "ckpt")


def test_a_file_on_standard_input_stands_where_the_caller_does(project: Path) -> None:
    given = "run: x\nname: piped\ncheckpoint: {dir: ckpt}\n"
    done = CliRunner().invoke(command, ["-f", "-", "--dry-run", "--json"], input=given, catch_exceptions=False)

    plan = json.loads(done.stdout)
    assert (plan["name"], plan["checkpoint"]["dir"]) == ("piped", str(project / "ckpt"))


def test_a_run_gets_the_path_that_was_there_before_ours(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/bundle")
    monkeypatch.setenv("HOLDFAST_CALLER_PYTHONPATH", "/theirs")
    assert planned("--", "sh")["env"]["PYTHONPATH"] == "/theirs"

    monkeypatch.setenv("HOLDFAST_CALLER_PYTHONPATH", "")
    assert "PYTHONPATH" not in planned("--", "sh")["env"]


def test_options_go_over_the_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "a.yaml").write_text("run: x\nname: a\nenvs: {A: null}\n")
    (project / "b.yaml").write_text("restart: {max_restarts: 7}\n")
    monkeypatch.setenv("B", "from the caller")

    plan = planned(
        "-f", "a.yaml", "-f", "b.yaml", "--set", "stop_grace_period=5s", "--env", "A=1", "-e", "B",
        "--secret", "S=hunter2", "--name", "c", "--", "sh",
    )  # fmt: skip

    assert (plan["argv"], plan["name"], plan["restart"]["max_restarts"], plan["stop_grace_s"]) == (["sh"], "c", 7, 5.0)
    assert (plan["env"]["A"], plan["env"]["B"], plan["secret_names"]) == ("1", "from the caller", ["S"])
    assert "hunter2" not in json.dumps(plan)


@pytest.mark.parametrize(("words", "error", "said"), [
    ((), UsageError, "there is no holdfast.yaml here and no command was given"),
    (("x.yaml",), UsageError, "x.yaml is not a command"),
    (("-f", "x.yaml"), UsageError, "run file x.yaml cannot be read: No such file"),
    (("--json", "--", "sh"), UsageError, "--json needs -d or --dry-run"),
    (("--id", "../x", "--", "sh"), UsageError, "'../x' cannot be a run id"),
    (("--", "no-such-program"), UsageError, "there is no program 'no-such-program'"),
    (("--name", "../x", "--", "sh"), RunFileError, "cannot be a run's name"),
    (("--env", "NOT_THERE_AT_ALL", "--", "sh"), RunFileError, "NOT_THERE_AT_ALL is not in the environment"),
])  # fmt: skip
def test_what_cannot_be_is_told_and_nothing_is_made(
    words: tuple[str, ...], error: type[HoldfastError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        call(*words)
    assert said in str(caught.value)
    assert not (tmp_path / "home").exists()


def test_a_file_that_is_not_text_is_told(project: Path) -> None:
    (project / "holdfast.yaml").write_bytes(b"run: \xff\n")
    with pytest.raises(RunFileError, match=r"holdfast\.yaml is not UTF-8 text: byte 5 is 0xff"):
        read_sources((), ())


def test_a_run_file_that_is_there_and_not_used_is_told(project: Path) -> None:
    (project / "holdfast.yaml").write_text("run: x\n")
    assert "note: holdfast.yaml is not used" in call("--dry-run", "--", "sh").stderr


FACTS = Facts(
    run="r",
    dir="/h/runs/r",
    name="r",
    base="/w",
    cwd="/h/runs/r/code",
    shell="/bin/bash",
    home="/root",
    environ={"PATH": "/bin"},
)


def made(text: str) -> tuple[Spec, Plan]:
    spec = load([Source("f", text)], environ={"A": "from the environment"}, secrets=["B=x=y"])
    return spec, make(spec, FACTS)


def test_secrets_come_from_options_the_environment_and_recipes() -> None:
    spec, plan = made("run: x\nsecrets: {A: null, C: {command: echo from a command}}")

    values = secret_values(spec, plan, ["B=x=y"], {"A": "from the environment"})

    assert values == {"A": "from the environment", "B": "x=y", "C": "from a command"}


def test_a_plan_for_people() -> None:
    _, plan = made(
        "run: python train.py\nsetup: make\nenvs: {N: 1}\nsecrets: {C: {command: pass c}}\nmax_duration: 14d\n"
        "checkpoint: {every: [15m, 1000 steps], keep: {best: {metric: loss}}}\nwatchdog: {progress: 10m}"
    )
    assert (
        describe(plan, copied=True)
        == """\
run          r, new
folder       /h/runs/r
command      /bin/bash -c 'python train.py'
in           /h/runs/r/code, a snapshot of the code
setup        /bin/bash -c make
environment  PATH=/bin
environment  N=1
secret       B, from the caller
secret       C, from command pass c
checkpoints  /h/runs/r/checkpoints
             every 15m or 1000 steps; the last 3 and the 1 of minimal loss are kept
             copies in memory, within 3 % of the time
mirror       none
restarts     on-failure; 20 at most, 5 in 1 h, 3 without progress; pause 1 s to 10 min
watchdog     restart; first step within 30 min, between steps 10 min
log          1.9 GiB, a line on the state every 10 min
stop         SIGTERM, then 3 min of grace
at most      14 d"""
    )


def test_the_plan_says_what_the_checkpoint_table_says() -> None:
    keep = "keep: {every: 10000 steps, max_size: 1GiB, max_age: 7d}"
    mirror = "mirror: {url: 's3://bucket/${run}', every: 30m, bandwidth: 64MiB/s, logs: true}"
    _, plan = made(f"run: x\ncheckpoint: {{every: 60s if 10 steps, memory: 1 step, {keep}, {mirror}}}")
    _, other = made("run: x\ncheckpoint: {memory: 'off'}")

    lines = describe(plan, copied=True).splitlines()

    kept = "the last 3 and one every 10000 steps are kept, up to 1.0 GiB, multiples for 7 d"
    assert f"             every 1m if 10 steps; {kept}" in lines
    assert "             copies in memory, every 1 step" in lines
    assert "mirror       s3://bucket/r, every 30m, 64.0 MiB/s at most, logs too" in lines
    assert "             no copies in memory" in describe(other, copied=True).splitlines()


def test_the_checkpoint_to_begin_with_is_settled_when_the_run_is_made(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "base"
    folder = Folder(root)
    folder.open()
    commit(folder, [part_of(step=7, term=2, sequence=5)])

    assert planned("--from", "../base@7", "--", "sh")["env"]["HOLDFAST_INIT"] == f"{root}@2-5"
    assert "HOLDFAST_INIT" not in planned("--", "sh")["env"]
    with pytest.raises(UsageError, match="has no checkpoint at step 8"):
        call("--from", "../base@8", "--dry-run", "--", "sh")
