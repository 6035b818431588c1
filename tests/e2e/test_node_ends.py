"""How runs of plain programs end: success, failure, loops, programs that do not exist, stops."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest

from holdfast import process
from holdfast.events import AttemptEnded, FindingRaised, StopRequested
from holdfast.node import client, sweep
from holdfast.plan import LogsPlan
from tests import noderuns, rundirs
from tests.noderuns import python, shell
from tests.waiting import until

pytestmark = pytest.mark.e2e
LOOP = "trap 'echo caught' TERM; echo up; while :; do sleep 0.05; done"


def test_success_leaves_nothing_behind(home: Path) -> None:
    run = noderuns.begin(home, shell("echo done"))

    assert noderuns.ended(run).state == "succeeded"
    assert run.output.read_bytes() == b"done\n"
    assert sweep.members(run.root) == []
    assert client.status(run)["state"] == "succeeded"


def test_a_crash_is_restarted_within_moments(home: Path) -> None:
    text = 'echo "attempt $HOLDFAST_ATTEMPT"; [ $HOLDFAST_ATTEMPT = 5 ]'
    run = noderuns.begin(home, shell(text), restart=rundirs.patient())

    assert noderuns.ended(run).state == "succeeded"
    assert run.output.read_text() == "".join(f"attempt {number}\n" for number in range(1, 6))
    ends, starts = noderuns.of(run, AttemptEnded), rundirs.state(run).starts[1:]
    quickest_s = min(start.t - end.t for end, start in zip(ends, starts, strict=False))
    assert quickest_s < 1.0, "the machine may have stood still between two of them"


def test_a_loop_without_progress_stops_with_13_and_the_last_traceback(home: Path) -> None:
    run = noderuns.begin(home, python("undefined_name"))

    result = noderuns.ended(run)

    assert result.exit_code == 13
    last = noderuns.of(run, AttemptEnded)[-1]
    assert last.attempt == 3
    assert "NameError: name 'undefined_name' is not defined" in last.traceback


def test_a_segfault_loop_of_a_program_of_unknown_progress_stops_too(home: Path) -> None:
    run = noderuns.begin(home, shell("kill -SEGV $$"))

    assert noderuns.ended(run).exit_code == 13
    assert {end.exit_class for end in noderuns.of(run, AttemptEnded)} == {"segfault"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["no-such-program"], "no-such-program"),
        (["/etc"], "Permission denied"),
        (["sh", "-c", "exec no-such-program"], "not found"),
        (["python3", "no-such-script.py"], "no-such-script.py"),
    ],
)
def test_a_program_that_cannot_start_is_told_at_once(home: Path, argv: list[str], says: str) -> None:
    run = noderuns.begin(home, argv)

    result = noderuns.ended(run)

    assert result.state == "failed"
    assert says in result.reason
    assert len(noderuns.of(run, AttemptEnded)) == 1


def test_setup_runs_once_and_its_failure_ends_the_run(home: Path) -> None:
    good = noderuns.begin(home, shell("[ $HOLDFAST_ATTEMPT = 2 ]"), setup=("sh", "-c", "echo prepared"))
    bad = noderuns.begin(home, shell("echo never"), name="bad", setup=("sh", "-c", "exit 9"))

    assert noderuns.ended(good).state == "succeeded"
    assert good.output.read_text() == "prepared\n"
    assert noderuns.ended(bad).exit_code == 9
    assert b"never" not in bad.output.read_bytes()


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(home: Path) -> None:
    run = noderuns.begin(home, shell(LOOP))
    noderuns.attempt(run, 1)

    client.call(run, "POST", "/stop", {"grace_s": 0.3})

    assert noderuns.ended(run).state == "stopped"
    assert b"caught" in run.output.read_bytes()
    assert noderuns.of(run, AttemptEnded)[0].status == -signal.SIGKILL


def test_kill_does_not_wait(home: Path) -> None:
    run = noderuns.begin(home, shell(LOOP))
    noderuns.attempt(run, 1)

    client.call(run, "POST", "/kill")

    assert noderuns.ended(run).exit_code == 137
    assert b"caught" not in run.output.read_bytes()


def test_sigterm_to_the_shim_stops_and_marks_as_to_be_continued(home: Path) -> None:
    run = noderuns.begin(home, shell(LOOP.replace("echo caught", "exit 0")), stop_grace_s=5.0)
    noderuns.attempt(run, 1)

    process.send_signal(noderuns.role(run, "shim"), signal.SIGTERM)

    result = noderuns.ended(run)
    assert (result.state, result.to_be_continued) == ("stopped", True)
    assert noderuns.of(run, StopRequested)[0].how == "preempted"


def test_an_ended_run_is_resumed(home: Path) -> None:
    run = noderuns.begin(home, shell("[ $HOLDFAST_ATTEMPT -ge 4 ]"), restart=rundirs.once())
    assert noderuns.ended(run).state == "failed"

    process.start_shim(run)
    noderuns.answers(run)
    client.call(run, "POST", "/resume", {"at": None})

    until(lambda: (rundirs.state(run).history or [None])[-1].attempt == 2)  # type: ignore[union-attr]
    assert noderuns.ended(run).state == "failed"


def test_leftovers_of_an_attempt_are_swept_before_the_next(home: Path) -> None:
    text = "setsid sleep 1000 & [ $HOLDFAST_ATTEMPT = 2 ] || exit 3"
    run = noderuns.begin(home, shell(text))

    assert noderuns.ended(run).state == "succeeded"
    assert [end.orphans for end in noderuns.of(run, AttemptEnded)] == [1, 1]
    assert sweep.members(run.root) == []


def test_output_is_bounded_and_offsets_stay(home: Path) -> None:
    text = "yes 0123456789abcde | head -c 40000000; echo end; [ $HOLDFAST_ATTEMPT = 2 ]; sleep 0.6"
    run = noderuns.begin(home, shell(text), logs=LogsPlan(max_bytes=1 << 20))

    noderuns.ended(run)

    found = run.output.stat()
    assert found.st_size == 40_000_004
    assert found.st_blocks * 512 < 8 << 20
    assert run.output.read_bytes().endswith(b"abcde\nend\n")


def test_the_trainer_finds_its_environment_and_no_secret_is_written(home: Path) -> None:
    told = "import os, json; print(json.dumps(dict(os.environ)))"
    run = rundirs.make(home, python(told), secret_names=("TOKEN",), env={"EPOCHS": "3"})
    process.start_shim(run, secrets={"TOKEN": "s3cret"})
    noderuns.ended(run)

    environ = json.loads(run.output.read_text())

    assert environ["TOKEN"] == "s3cret"
    assert environ["EPOCHS"] == "3"
    assert environ["HOLDFAST_RUN_DIR"] == str(run.root)
    assert environ["WANDB_RUN_ID"].startswith("digits-")
    assert "HOLDFAST_CALLER_PYTHONPATH" not in environ
    written = [path for path in run.root.rglob("*") if path.is_file() and path != run.output]
    assert all(b"s3cret" not in path.read_bytes() for path in written)


def test_a_run_whose_secrets_are_gone_waits_for_them(home: Path) -> None:
    run = noderuns.begin(home, shell('[ "$TOKEN" = s3cret ]'), secret_names=("TOKEN",))
    until(lambda: [finding for finding in noderuns.of(run, FindingRaised) if finding.id == "needs-secrets"])

    process.request(run.runtime / "shim.sock", {"op": "secrets", "values": {"TOKEN": "s3cret"}}, timeout_s=5)

    assert noderuns.ended(run).state == "succeeded"


def test_max_duration_stops_the_run(home: Path) -> None:
    run = noderuns.begin(home, shell("echo up; sleep 1000"), max_duration_s=0.5)

    assert noderuns.ended(run).state == "stopped"
    assert noderuns.of(run, StopRequested)[0].how == "max-duration"


def test_the_end_of_a_segment_begins_a_program_without_the_library_anew_and_says_so(home: Path) -> None:
    run = noderuns.begin(home, shell("echo up; [ $HOLDFAST_ATTEMPT -ge 3 ] || sleep 1000"), segment_s=0.5)

    assert noderuns.ended(run).state == "succeeded"
    *cuts, last = [end.exit_class for end in noderuns.of(run, AttemptEnded)]
    assert (set(cuts), len(cuts) >= 2, last) == ({"segment_cut"}, True, "succeeded")
    told = [found.message for found in noderuns.of(run, FindingRaised) if found.id == "segment-unsaved"]
    assert len(told) == len(cuts)
    assert "does not use the library" in told[0]
    assert (rundirs.state(run).segments, rundirs.state(run).restarts) == (len(cuts), 0)


def test_a_segment_too_short_for_anything_ends_with_13_and_a_sentence(home: Path) -> None:
    run = noderuns.begin(home, shell(LOOP), segment_s=0.3, stop_grace_s=0.1)

    result = noderuns.ended(run)

    assert result.exit_code == 13
    assert "`segment` (300 ms) is too short to start, take a step and save" in result.reason
    assert {end.exit_class for end in noderuns.of(run, AttemptEnded)} == {"segment_cut"}


def test_requests_that_make_no_sense_are_refused(home: Path) -> None:
    run = noderuns.begin(home, shell("echo up; sleep 1000"))
    noderuns.attempt(run, 1)

    for path, body in [("/stop", {"grace_s": "soon"}), ("/resume", {}), ("/dance", {})]:
        with pytest.raises(client.HoldfastError):
            client.call(run, "POST", path, body)

    assert client.call(run, "GET", "/ping")["ok"]
    told = client.call(run, "GET", "/journal?from=0")
    assert [line["event"] for line in told["events"]][:2] == ["run_created", "supervisor_started"]
    assert run.journal.read_bytes()[: told["next"]].count(b"\n") == len(told["events"])
    assert dataclasses.asdict(rundirs.events(run)[0])["run"] == "digits"
