from __future__ import annotations

import os
import subprocess
import sys

from holdfast.commands.shell import environment
from tests.unit.commands.scene import holdfast, make_run


def in_shell(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "holdfast", "shell", "digits", *words]
    return subprocess.run(argv, capture_output=True, text=True, env=os.environ)


def test_a_command_runs_in_the_code_folder_with_the_runs_environment() -> None:
    run = make_run(env={"EPOCHS": "40"})

    done = in_shell("--", "sh", "-c", 'echo "$PWD $EPOCHS $HOLDFAST_RUN_ID $1"; exit 7', "-", "--flag")

    assert done.stdout == f"{run.code} 40 digits {'--flag'}\n"
    assert done.returncode == 7


def test_a_script_tried_by_hand_is_not_the_trainer() -> None:
    run = make_run()

    made = environment(run, {"checkpoint": {"dir": "/c"}, "env": {}}, {"HOLDFAST_RUN_DIR": "/elsewhere"})

    assert "HOLDFAST_RUN_DIR" not in made


def test_the_newest_manifest_is_named() -> None:
    run = make_run()
    manifests = run.checkpoints / "manifests"
    manifests.mkdir(parents=True)
    for name in ("000001-00000002-aa.json", "000002-00000001-bb.json"):
        (manifests / name).touch()

    done = in_shell("--", "printenv", "HOLDFAST_RESUME")

    assert done.stdout == f"{manifests}/000002-00000001-bb.json\n"


def test_the_prompt_is_marked() -> None:
    make_run()
    environ = {**os.environ, "SHELL": "/bin/sh"}

    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "shell", "digits"],
        input='echo "$PS1"\n',
        capture_output=True,
        text=True,
        env=environ,
    )

    assert "(digits)" in done.stdout


def test_a_program_that_is_not_there_is_a_usage_error() -> None:
    make_run()

    said = in_shell("--", "no-such-program")

    assert said.returncode == 2
    assert "no-such-program" in said.stderr


def test_an_unknown_run_is_told() -> None:
    assert holdfast("shell", "nobody").code == 2
