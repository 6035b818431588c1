from __future__ import annotations

import json
import os
import pty
import re
from pathlib import Path

import pytest

from holdfast.commands import attach, ps, remembered
from holdfast.commands import status as status_verb
from holdfast.commands.arguments import fitted, takes_colours
from holdfast.events import RunEnded
from tests.unit.commands.golden import matches_golden
from tests.unit.commands.scene import NOW, holdfast, make_run, status, supervised
from tests.unit.commands.terminal import Terminal

DISK = {"id": "disk-full", "severity": "error", "message": "12 MiB left on /data", "hint": "free some space"}


def test_ps_shows_what_has_not_ended() -> None:
    digits, mnist, done = make_run("digits"), make_run("mnist"), make_run("old")

    with (
        supervised(digits, status("digits")),
        supervised(mnist, status("mnist", state="preparing", attempt=0, step=None, checkpoint=None, eta_s=None)),
        supervised(done, status("old", state="succeeded", exit_code=0)),
    ):
        said = holdfast("ps")

    matches_golden("ps.txt", said.out)
    assert said.err == "1 ended run not shown\nhint: holdfast ps --all\n"


def test_ps_json_has_the_same_runs() -> None:
    run = make_run("digits")

    with supervised(run, status("digits")):
        (found,) = json.loads(holdfast("ps", "--json").out)

    assert found == status("digits")


def test_ps_goes_on_past_a_run_it_cannot_read() -> None:
    broken, digits = make_run("broken"), make_run("digits")
    broken.journal.write_text("{}nonsense\n")

    with supervised(digits, status("digits")):
        said = holdfast("ps")

    assert re.search(r"^broken +unreadable", said.out, re.MULTILINE)
    assert re.search(r"^digits +running", said.out, re.MULTILINE)
    assert "broken: " in said.err


def test_ps_without_any_run_says_how_to_begin() -> None:
    said = holdfast("ps")

    assert (said.out, said.code) == ("", 0)
    assert "holdfast run" in said.err


def test_a_row_copes_with_a_status_that_knows_nothing() -> None:
    assert ps.row({"run": "x", "state": "lost"}) == ("x", "lost", "-", "-", "-", "-")


def test_status_reads_as_in_the_guide() -> None:
    run = make_run()

    with supervised(run, status(findings=[DISK])):
        said = holdfast("status", "digits")

    matches_golden("status.txt", said.out)
    assert said.err == "hint: free some space\n"


def test_status_json_is_the_supervisors_object() -> None:
    run = make_run()

    with supervised(run, status()):
        assert json.loads(holdfast("status", "--json").out) == status()


def test_status_of_a_run_nobody_carries_comes_from_its_files() -> None:
    make_run(journal=(RunEnded(t=NOW, state="failed", exit_code=13, reason="no progress in 3 attempts"),))

    said = holdfast("status", "digits")

    assert "failed, exit code 13" in said.out
    assert "no progress in 3 attempts" in said.out
    assert "hint: holdfast explain digits" in said.err


WIDE = {
    "memory": {"step": 18200, "age_s": 3.0},
    "metrics": {"loss": 0.3125, "lr": 0.001, "accuracy": 0.98123, "grad_norm": 1.23, "val_loss": 0.5},
    "mirror": {
        "url": "s3://bucket/holdfast/runs/digits", "superseded": False, "unreachable_since_s": NOW, "unsent": 3,
        "unsent_s": 7000.0, "held": 3, "behind": True,
    },
    "findings": [
        {
            "id": "archiver-failed", "severity": "error",
            "message": "a job of the thread archive failed: FileNotFoundError: [Errno 2] /data/packs: no such folder",
            "hint": "node.log in the run's folder has the trace: please report it, with what else happened on that day",
        },
    ],
}  # fmt: skip


def test_cells_of_other_machines_steer_no_terminal() -> None:
    assert fitted(["gpu-a  \x1b]0;mine\x07digits", "gpu-b  ü\tx"]) == [
        "gpu-a  \ufffd]0;mine\ufffddigits",
        "gpu-b  ü\tx",
    ]


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("name", ["digits", "finetune-llama-7b-on-everything-2025-11-24"])
def test_status_fits_the_terminal_and_says_the_same(columns: int, name: str) -> None:
    run, facts = make_run(name), status(name, **WIDE)

    with supervised(run, facts):
        terminal = Terminal("status", name, columns=columns)
        assert terminal.exit_code() == 0

    lines = terminal.shown.decode().splitlines()
    assert max(map(len, lines)) <= columns
    everything = [*status_verb.render(facts), *(f"hint: {hint}" for hint in status_verb.hints(facts))]
    assert " ".join(lines).split() == " ".join(everything).split()


def test_status_at_80_columns_and_at_60() -> None:
    shown = ["\n".join(status_verb.render(status(**WIDE), columns)) for columns in (80, 60)]

    matches_golden("status-narrow.txt", "\n\n".join(shown) + "\n")


def test_status_watch_prints_each_change_until_the_end() -> None:
    run = make_run()

    with supervised(run, status()) as fake:
        fake.on_status = lambda asked: fake.ends("succeeded", 0) if asked == 2 else None
        said = holdfast("status", "--watch")

    assert said.out.count("digits") == 2
    assert "succeeded, exit code 0" in said.out


def test_without_a_run_the_only_live_one_is_meant() -> None:
    make_run("newer-but-ended")
    live = make_run("alive")

    with supervised(live, status("alive")):
        assert holdfast("status").out.startswith("alive")


def test_without_a_run_two_live_ones_are_too_many() -> None:
    first, second = make_run("a"), make_run("b")

    with supervised(first, status("a")), supervised(second, status("b")):
        said = holdfast("status")

    assert (said.code, said.err) == (2, "error: 2 runs are live: a, b\nhint: name the one you mean\n")


def test_slow_steps_are_told_by_the_step() -> None:
    assert status_verb.metrics(status(metrics={}, speed_steps_per_s=0.05)) == "20 s a step"


def test_facts_below_the_bar_name_everything_promised() -> None:
    said = attach.facts(status(findings=[DISK]))

    for fact in (
        "loss 0.3125",
        "0.96 steps/s",
        "left 9 h 12 min",
        "3 restarts",
        "saved step 18000, 41 s ago",
        "disk-full",
    ):
        assert fact in said


def test_events_are_shown_with_what_they_say() -> None:
    make_run(journal=(RunEnded(t=NOW, state="failed", exit_code=13, reason="no progress"),))

    said = holdfast("events", "digits")

    assert said.out.splitlines() == [
        "2025-11-24 15:00:00  run_created           run=digits",
        '2025-11-24 16:00:00  run_ended             state=failed exit_code=13 reason="no progress"',
    ]


def test_events_json_is_the_journal_itself_without_a_torn_line() -> None:
    run = make_run()
    whole = run.journal.read_text()
    run.journal.write_text(whole + '{"v": 1, "n": 1, "ev')

    assert holdfast("events", "digits", "--json").out == whole


def test_events_of_a_newer_version_are_shown() -> None:
    run = make_run()
    run.journal.write_text(json.dumps({"v": 9, "n": 0, "t": NOW, "event": "warp", "factor": 7}) + "\n")

    assert holdfast("events", "digits").out == "2025-11-24 16:00:00  warp                  factor=7\n"


def test_a_home_that_is_a_file_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "file"))

    said = holdfast("ps")

    assert (said.code, "is not a folder" in said.err) == (2, True)


def test_who_has_runs_on_other_machines_alone_is_told_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Host gpu-a\n")
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(tmp_path / "config"))
    remembered.remember("gpu-a", "digits", tmp_path, {}, ())

    assert holdfast("ps").err == "no runs on this machine\nhint: holdfast ps --on gpu-a\n"
    assert "no run named 'digist'; did you mean 'gpu-a:digits'?" in holdfast("status", "digist").err
    said = holdfast("status", "gpu-a")
    assert said.code == 2
    assert said.err.startswith("error: gpu-a is a machine, and no run\nhint: name the run: gpu-a:RUN; ")


@pytest.mark.parametrize(("environ", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_are_for_terminals_that_want_them(
    environ: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, terminal = pty.openpty()
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with open(terminal, "w") as out:  # noqa: PTH123 - a descriptor
        monkeypatch.setattr("sys.stdout", out)
        assert takes_colours() is coloured
    os.close(controller)
