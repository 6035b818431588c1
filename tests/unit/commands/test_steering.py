from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from holdfast.commands.resumable import run_at
from holdfast.commands.resume import cut_off
from holdfast.commands.save import verdict
from holdfast.commands.secrets import secrets_of
from holdfast.errors import HoldfastError, RunNotFound, StoreRefused, UsageError
from holdfast.events import AttemptEnded, CheckpointCommitted, CheckpointFailed, RunEnded, to_json
from holdfast.plan import CheckpointPlan
from holdfast.runs import RunDir
from tests.unit.commands.scene import NOW, holdfast, make_run, status, supervised

COMMITTED = CheckpointCommitted(t=NOW, step=12, term=1, sequence=1, size_bytes=1, reason="asked for")
FAILED = CheckpointFailed(t=NOW, step=12, reason="asked for", message="no space left on device")


def append(run: RunDir, *events: CheckpointCommitted | CheckpointFailed) -> None:
    with run.journal.open("a") as journal:
        journal.writelines(json.dumps(to_json(event, number=1)) + "\n" for event in events)


def test_save_asks_the_supervisor() -> None:
    run = make_run()

    with supervised(run, status()) as fake:
        said = holdfast("save", "--reason", "before lunch")

    assert fake.asked == [("/save", {"reason": "before lunch"})]
    assert (said.code, said.err) == (0, "digits saves at its next step\n")


@pytest.mark.parametrize("verb", ["save", "stop", "kill"])
def test_a_run_of_a_newer_version_is_asked_nothing(verb: str) -> None:
    run = make_run()
    run.plan.write_text(json.dumps({**json.loads(run.plan.read_text()), "version": 99}))

    with supervised(run, status()) as fake:
        said = holdfast(verb, "digits")

    assert (said.code, fake.asked) == (1, [])
    assert "its plan has version 99, this holdfast reads" in said.err


def test_save_wait_comes_back_with_the_step() -> None:
    run = make_run()

    with supervised(run, status(), on_post=lambda _path: append(run, COMMITTED)):
        assert holdfast("save", "--wait").out == "step 12 saved\n"


def test_save_wait_fails_as_the_store_did() -> None:
    run = make_run()

    with supervised(run, status(), on_post=lambda _path: append(run, FAILED)):
        said = holdfast("save", "--wait")

    assert said.code == StoreRefused.exit_code
    assert "no space left on device" in said.err


def test_a_save_that_was_under_way_already_is_not_the_one_asked_for() -> None:
    assert verdict([CheckpointFailed(step=11, reason="", message="")], step=12) is None
    assert verdict([COMMITTED], step=12) == COMMITTED
    with pytest.raises(HoldfastError, match="before the save"):
        verdict([AttemptEnded(attempt=1, exit_class="killed", status=-9, step=11, committed_step=0)], step=12)


@pytest.mark.parametrize(
    ("argv", "asked"),
    [
        (("stop", "digits"), ("/stop", {})),
        (("stop", "digits", "--grace", "90s"), ("/stop", {"grace_s": 90.0})),
        (("stop", "digits", "--now"), ("/kill", {})),
        (("kill", "digits"), ("/kill", {})),
    ],
)
def test_stop_and_kill_wait_for_the_end(argv: tuple[str, ...], asked: tuple[str, dict[str, float]]) -> None:
    run = make_run()

    with supervised(run, status()) as fake:
        fake.on_post = lambda _path: fake.ends("stopped", 75)
        said = holdfast(*argv)

    assert fake.asked == [asked]
    assert said.code == 0
    assert "digits stopped at step 18200; 200 steps since the newest checkpoint" in said.err
    assert "hint: holdfast resume digits" in said.err


def test_what_was_saved_nowhere_is_told_by_a_stop() -> None:
    run = make_run()

    with supervised(run, status(checkpoint=None)) as fake:
        fake.on_post = lambda _path: fake.ends("stopped", 143)
        said = holdfast("stop", "digits")

    assert "digits stopped at step 18200; 18200 steps that no checkpoint holds will be done again\n" in said.err


def test_what_is_not_live_cannot_be_stopped() -> None:
    make_run(journal=(RunEnded(t=NOW, state="succeeded", exit_code=0, reason="done"),))

    said = holdfast("stop", "digits")

    assert (said.code, said.err.splitlines()[0]) == (2, "error: cannot stop digits: it is succeeded")


def test_a_refusal_of_the_supervisor_is_told_as_it_is() -> None:
    run = make_run()
    refusal = (409, {"error": "a save is under way", "hint": "wait for it", "exit_code": 1})

    with supervised(run, status(), replies={"/save": refusal}):
        said = holdfast("save")

    assert (said.code, said.err) == (1, "error: a save is under way\nhint: wait for it\n")


@pytest.mark.parametrize(("state", "code"), [("succeeded", 0), ("failed", 13), ("stopped", 75)])
def test_wait_returns_the_runs_own_code(state: str, code: int) -> None:
    run = make_run()

    with supervised(run, status()) as fake:
        fake.on_status = lambda asked: fake.ends(state, code) if asked == 2 else None
        assert holdfast("wait", "digits").code == code


def test_wait_gives_up_after_its_timeout() -> None:
    run = make_run()

    with supervised(run, status()):
        assert holdfast("wait", "digits", "--timeout", "100ms").code == 124


def ended(name: str = "digits", **plan: object) -> RunDir:
    return make_run(name, journal=(RunEnded(t=NOW, state="succeeded", exit_code=0, reason="done"),), **plan)


def test_rm_deletes_an_ended_run_altogether() -> None:
    run = ended()
    (run.checkpoints / "manifests").mkdir(parents=True)

    said = holdfast("rm", "--force", "digits")

    assert (said.code, said.err) == (0, "digits deleted\n")
    assert not run.root.exists()


def test_rm_refuses_a_live_run_even_by_force() -> None:
    run = ended()
    with run.lock.open("w") as lock:
        lock.write('{"pid": 4711}')
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = holdfast("rm", "--force", "digits")

    assert said.code == 11
    assert "process 4711" in said.err and "holdfast stop digits" in said.err
    assert run.plan.exists()


def test_rm_wants_to_be_told_twice() -> None:
    run = ended()

    assert holdfast("rm", "digits").code == 2
    assert run.plan.exists()


def test_rm_leaves_checkpoints_that_lie_elsewhere_and_says_where(tmp_path: Path) -> None:
    ended(checkpoint=CheckpointPlan(dir=str(tmp_path)))

    said = holdfast("rm", "--force", "digits")

    assert said.err == f"digits deleted; its checkpoints stay in {tmp_path}\n"
    assert tmp_path.exists()


def test_rm_in_a_folder_that_a_script_chose_deletes_only_what_we_made(tmp_path: Path) -> None:
    run = RunDir(ended("alone", alone=True).root.rename(tmp_path / "alone"))
    (run.root / "thesis.tex").write_text("years of work")

    said = holdfast("rm", "--force", str(run.root))

    assert said.code == 0
    assert [path.name for path in run.root.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("text", "at"), [("digits", None), ("digits@1200", 1200), ("digits@best", "best")])
def test_where_to_resume_at(text: str, at: int | str | None) -> None:
    run = make_run()

    assert run_at(text) == (run, at)


def test_where_nobody_can_resume_at() -> None:
    make_run()

    with pytest.raises(UsageError, match="a step or best"):
        run_at("digits@last")
    with pytest.raises(RunNotFound):
        run_at("digit@7")


@pytest.mark.parametrize(
    ("state", "continued", "living", "expected"),
    [
        ("lost", False, False, True),
        ("running", False, False, True),
        ("running", False, True, False),
        ("stopped", True, False, True),
        ("stopped", False, False, False),
        ("failed", False, False, False),
    ],
)
def test_what_a_reboot_continues(state: str, continued: bool, living: bool, expected: bool) -> None:
    assert cut_off({"state": state, "to_be_continued": continued}, living) is expected


def test_only_the_runs_own_secrets_are_taken_from_the_environment() -> None:
    assert secrets_of({"secret_names": ["KEY", "GONE"]}, {"KEY": "hush", "OTHER": "no"}) == {"KEY": "hush"}


def test_resume_of_a_run_that_is_running_is_refused() -> None:
    run = make_run()

    with supervised(run, status()) as fake:
        said = holdfast("resume", "digits", "-d")

    assert said.code == 2
    assert "digits is running already" in said.err
    assert fake.asked == []


def test_resume_asks_a_supervisor_that_is_still_there() -> None:
    run = make_run()

    with supervised(run, status(state="stopped", exit_code=75)) as fake:
        said = holdfast("resume", "digits@1200", "-d")

    assert fake.asked == [("/resume", {"at": 1200})]
    assert said.code == 0


def test_resume_wants_a_run_or_all() -> None:
    assert holdfast("resume").code == 2


def test_resume_of_a_scripts_own_run_names_the_script() -> None:
    make_run(alone=True)

    assert "start the script again" in holdfast("resume", "digits").err
