from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path

import pytest

from holdfast.commands import cronfields, timers
from holdfast.errors import UsageError
from tests.unit.commands.scene import holdfast, make_run, status, supervised

FOREIGN = "# backups, do not touch\n15 3 * * 0  /usr/bin/backup --all # holdfast: not\n"
FAKE = """#!/bin/sh
case "$1" in
-l) if [ -f "$0.table" ]; then cat "$0.table"; else echo "no crontab for $(id -un)" >&2; exit 1; fi ;;
-) cat > "$0.table" ;;
esac
"""


@pytest.fixture
def table(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a fake `crontab` program keeps; there is no other clock on this PATH."""
    programs = own_home / "bin"
    programs.mkdir()
    (programs / "crontab").write_text(FAKE)
    (programs / "crontab").chmod(0o755)
    for name in ("sh", "cat", "id"):
        (programs / name).symlink_to(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    return programs / "crontab.table"


@pytest.fixture
def run_file(own_home: Path) -> Path:
    """A run file in a folder whose name a shell would split and cron would cut."""
    folder = own_home / "my 100% model"
    folder.mkdir()
    (folder / "holdfast.yaml").write_text("name: digits\nrun: python train.py\n")
    return folder / "holdfast.yaml"


def test_an_entry_is_added_beside_the_users_own_and_taken_out_again(table: Path, run_file: Path) -> None:
    table.write_text(FOREIGN)

    added = holdfast("schedule", str(run_file), "--nightly", "--name", "digits")
    with_ours = table.read_text()
    removed = holdfast("schedule", "rm", "digits")

    assert (added.code, removed.code) == (0, 0)
    assert with_ours.startswith(FOREIGN)
    assert with_ours.splitlines()[2].startswith("0 2 * * * /usr/bin/env HOLDFAST_HOME=")
    assert with_ours.splitlines()[2].endswith("# holdfast:schedule-digits")
    assert table.read_text() == FOREIGN


def test_scheduling_again_replaces_the_entry(table: Path, run_file: Path) -> None:
    holdfast("schedule", str(run_file), "--nightly", "--name", "digits")
    holdfast("schedule", str(run_file), "--cron", "*/15  * * * mon-fri", "--name", "digits")

    (entry,) = table.read_text().splitlines()
    assert entry.startswith("*/15 * * * mon-fri ")


def test_a_percent_sign_in_an_entry_is_not_cut_by_cron(
    table: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(own_home / "100%"))

    assert holdfast("host", "setup", "--yes").code == 0

    assert r"100\%" in table.read_text()
    assert "100%" not in table.read_text()


def test_a_folders_name_that_is_no_name_asks_for_one(table: Path, run_file: Path) -> None:
    said = holdfast("schedule", str(run_file), "--nightly")

    assert (said.code, table.exists()) == (2, False)
    assert "--name" in said.err


@pytest.mark.parametrize("infra", ["ssh/gpu-a", "[ssh/gpu-a, ssh/gpu-b]"])
def test_a_run_file_of_another_machine_is_refused(table: Path, run_file: Path, infra: str) -> None:
    run_file.write_text(f"run: python train.py\nresources: {{infra: {infra}}}\n")

    said = holdfast("schedule", str(run_file), "--nightly", "--name", "digits")

    assert (said.code, table.exists()) == (2, False)
    assert "runs on ssh/gpu-a" in said.err
    assert "hint: schedule it there" in said.err


def test_a_broken_crontab_is_never_overwritten(table: Path, run_file: Path) -> None:
    table.parent.joinpath("crontab").write_text(
        '#!/bin/sh\n[ "$1" = - ] && exec cat > "$0.table"\necho broken >&2; exit 3\n'
    )

    said = holdfast("schedule", str(run_file), "--nightly", "--name", "digits", "--by", "cron")

    assert said.code == 1
    assert not table.exists()


def test_ls_shows_what_is_scheduled(table: Path, run_file: Path) -> None:
    assert "nothing is scheduled" in holdfast("schedule", "ls").err
    holdfast("schedule", str(run_file), "--nightly", "--name", "digits")

    assert holdfast("schedule", "ls").out.splitlines()[1].split()[:7] == ["digits", "0", "2", "*", "*", "*", "cron"]


def test_without_any_clock_it_says_so(own_home: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(own_home))

    said = holdfast("schedule", str(run_file), "--nightly", "--name", "digits")

    assert said.code == 1
    assert "no systemd user manager and no crontab" in said.err
    assert "runs cannot continue by themselves after a reboot" in holdfast("host", "setup", "--yes").err


def test_the_ci_recipe_needs_no_clock(run_file: Path) -> None:
    said = holdfast("schedule", str(run_file), "--cron", "0 2 * * 1", "--name", "digits", "--print-ci")

    assert 'schedule: [{cron: "0 2 * * 1"}]' in said.out
    assert "concurrency: {group: holdfast-digits, cancel-in-progress: false}" in said.out


def scheduled(table: Path, run_file: Path, **more: str) -> Path:
    holdfast("schedule", str(run_file), "--nightly", "--name", "digits")
    path = table.parent.parent / "home" / "schedules" / "digits.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return path


def test_the_clock_skips_while_the_earlier_start_holds_the_lock(table: Path, run_file: Path) -> None:
    path = scheduled(table, run_file)

    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = holdfast("schedule", "fire", "digits")

    assert (said.code, said.err) == (0, "digits: the earlier run is still going; skipped\n")


def test_the_clock_skips_while_an_earlier_run_has_not_ended(table: Path, run_file: Path) -> None:
    scheduled(table, run_file, run="digits-3")
    run = make_run("digits-3")

    with supervised(run, status("digits-3")):
        said = holdfast("schedule", "fire", "digits")

    assert (said.code, said.err) == (0, "digits: digits-3 has not ended; skipped\n")


def test_host_setup_adds_one_boot_entry_and_removes_it(table: Path) -> None:
    table.write_text(FOREIGN)

    for _ in range(2):
        assert holdfast("host", "setup", "--yes").code == 0
    ours = table.read_text().removeprefix(FOREIGN)
    assert holdfast("host", "setup", "--remove").code == 0

    assert ours.startswith("@reboot ")
    assert ours.count("\n") == 1
    assert f"{sys.executable} -m holdfast resume --all" in ours
    assert table.read_text() == FOREIGN


def test_host_setup_without_a_person_wants_yes(table: Path) -> None:
    said = holdfast("host", "setup")

    assert (said.code, table.exists()) == (2, False)


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 2 * * *", ["*-*-* 02:00:00"]),
        ("*/20 * * * *", ["*-*-* *:00,20,40:00"]),
        ("30 4 1 jan,jul *", ["*-01,07-01 04:30:00"]),
        ("0 0 * * 1-5", ["Mon,Tue,Wed,Thu,Fri *-*-* 00:00:00"]),
        ("0 0 * * 7", ["Sun *-*-* 00:00:00"]),
        ("0 0 13 * fri", ["*-*-13 00:00:00", "Fri *-*-* 00:00:00"]),
    ],
)
def test_cron_fields_in_systemds_words(cron: str, expected: list[str]) -> None:
    assert timers.on_calendar(cron) == expected


@pytest.mark.parametrize(
    "cron", ["", "0 2 * *", "60 * * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "a * * * *", "@daily"]
)
def test_cron_fields_that_cannot_be(cron: str) -> None:
    with pytest.raises(UsageError):
        cronfields.check(cron)


def test_units_leave_runs_alone_when_they_are_stopped() -> None:
    unit = timers.service("resume", ["/usr/bin/python", "a b", "50%"], at_boot=True)

    assert "KillMode=process" in unit
    assert 'ExecStart="/usr/bin/python" "a b" "50%%"' in unit
    assert "WantedBy=default.target" in unit


def test_schedules_are_listed_as_json() -> None:
    said = holdfast("schedule", "ls", "--json")

    assert (said.code, json.loads(said.out)) == (0, [])
