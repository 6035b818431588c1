from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast import commands, runs
from holdfast.commands import remembered
from tests.unit.commands.golden import matches_golden
from tests.unit.commands.scene import holdfast, make_run


def test_help_is_one_short_screen_from_the_table() -> None:
    said = holdfast("--help")

    assert said.code == 0
    matches_golden("help.txt", said.out)
    assert sum(len(verbs) for verbs in commands.VERBS.values()) < 30


@pytest.mark.parametrize("verb", [name for verbs in commands.VERBS.values() for name in verbs])
def test_every_verb_of_the_table_explains_itself(verb: str) -> None:
    said = holdfast(verb, "--help")

    assert said.code == 0
    assert said.out.startswith(f"Usage: holdfast {verb}")


def test_a_mistyped_verb_gets_the_nearest_one() -> None:
    said = holdfast("statsu")

    assert said.code == 2
    assert said.err == "error: no verb named 'statsu'; did you mean 'status'?\nhint: holdfast --help\n"
    assert "did you mean 'verify'?" in holdfast("ckpt", "vrify").err


def test_a_mistyped_run_gets_the_nearest_one() -> None:
    make_run("digits")

    said = holdfast("events", "digist")

    assert said.code == 2
    assert "did you mean 'digits'?" in said.err


def test_a_bug_leaves_a_report_without_secrets(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("digits")
    run.journal.write_text("not json\n")

    said = holdfast("events", "digits")

    (report,) = (own_home / "home" / "crashes").iterdir()
    assert said.code == 1
    assert said.err.startswith("error: bug in holdfast: JSONDecodeError; report written to ")
    assert str(report) in said.err
    assert "Traceback" in report.read_text()


def test_a_folder_in_tmp_that_is_somebody_elses_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    taken.chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("taken", "link", "file"):
        monkeypatch.setattr(runs, "runtime_home", lambda name=name: tmp_path / name)

        said = holdfast("forward", "--ls")

        whose = f"{tmp_path / name} belongs to another user, or others may write to it"
        assert (said.code, said.err) == (1, f"error: {whose}\nhint: let root remove it\n")


def test_crash_reports_hide_what_options_carry() -> None:
    from holdfast.commands.crash import scrubbed

    shown = " ".join(scrubbed(["run", "--secret", "KEY=hush", "--env=A=hush", "--", "python", "hush"]))

    assert "hush" not in shown
    assert "KEY=…" in shown


@pytest.mark.parametrize("argv", [["--help"], ["ps"]])
def test_start_up_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys; from holdfast.__main__ import run; run(sys.argv[1:]);print(*sorted(sys.modules), file=sys.stderr)"
    )

    make_run("digits")

    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env=os.environ)

    loaded = set(done.stderr.split())
    assert done.returncode == 0
    assert not loaded & {"torch", "numpy", "pydantic", "rich", "ruamel", "blake3", "holdfast.spec", "asyncio"}


def test_node_processes_start_without_the_command_line() -> None:
    code = (
        "import sys; from holdfast.__main__ import run; code = run(['node']);"
        "print(*sorted(sys.modules), file=sys.stderr); sys.exit(code)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 2
    assert not {"click", "rich", "holdfast.commands"} & set(done.stderr.split())


def test_a_reader_that_leaves_is_no_error() -> None:
    make_run("digits", output=b"line\n" * 200_000)

    program = f"{sys.executable} -m holdfast logs digits"
    line = f"set -o pipefail; {program} | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=os.environ)

    assert (done.returncode, done.stdout, done.stderr) == (0, "line\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(shell: str) -> None:
    said = holdfast("completion", shell)

    assert said.code == 0
    assert "_HOLDFAST_COMPLETE" in said.out


@pytest.mark.parametrize(("typed", "parts", "offered"), [
    ("node:", ["node", ":"], "digits"), ("no", ["no"], "node:"),
])  # fmt: skip
def test_bash_completes_runs_of_other_machines(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, typed: str, parts: list[str], offered: str
) -> None:
    """As bash calls it, which has cut the word at the colon, and puts the answer in the place of the last part."""
    remembered.remember("node", "digits", own_home, {}, ())
    (own_home / "config").write_text("Host node\n")
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(own_home / "config"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    words = " ".join(["holdfast", "status", *parts])
    script = f"""
        eval "$(holdfast completion bash)"
        compopt() {{ :; }}  # outside of a completion it only complains
        COMP_LINE="holdfast status {typed}" COMP_POINT=99 COMP_WORDS=({words}) COMP_CWORD={len(parts) + 1}
        $(complete -p holdfast | grep -o '[^ ]*_[^ ]*') holdfast
        echo "${{COMPREPLY[*]}}"
    """

    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == (f"{offered}\n", "")


def test_run_names_are_completed() -> None:
    make_run("digits")
    make_run("mnist")
    asked = {"_HOLDFAST_COMPLETE": "bash_complete", "COMP_WORDS": "holdfast logs di", "COMP_CWORD": "2"}

    done = subprocess.run(
        [sys.executable, "-m", "holdfast"], capture_output=True, text=True, env={**os.environ, **asked}
    )

    assert done.stdout == "plain,digits\n"
