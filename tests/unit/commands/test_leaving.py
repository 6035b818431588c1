"""Ctrl-C: every command that waits says what goes on without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.events import RunEnded
from tests.unit.commands.scene import NOW, holdfast, make_run, status, supervised
from tests.unit.commands.terminal import Terminal
from tests.waiting import until


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["wait"], ["digits goes on", "hint: holdfast wait digits waits again"]),
        (["stop"], ["digits: stop was asked for and goes on", "hint: holdfast wait digits"]),
        (["kill"], ["digits: kill was asked for and goes on", "hint: holdfast wait digits"]),
        (["save", "--wait"], ["digits was asked to save, and goes on", "hint: holdfast status digits"]),
        (["status", "--watch"], ["digits goes on"]),
        (
            ["logs", "-f"],
            ["digits goes on", "digits: shown up to byte 4", "hint: holdfast logs digits -f --from-byte 4"],
        ),
    ],
)
def test_ctrl_c_ends_the_command_alone_and_says_so(argv: list[str], said: list[str]) -> None:
    run = make_run(output=b"abc\n")

    with supervised(run, status()) as fake:
        verb, *options = argv
        terminal = Terminal(verb, "digits", *options)
        until(lambda: fake.statuses >= 2, what=lambda: terminal.read().decode())
        terminal.press(b"\x03")
        code = terminal.exit_code()

    lines = terminal.shown.decode().splitlines()
    assert code == 130
    assert [line for line in lines if line in said] == said
    assert lines[-len(said) :] == said


def test_ctrl_c_in_a_command_that_does_not_wait_for_a_run_is_not_silent_either(tmp_path: Path) -> None:
    file = tmp_path / "holdfast.yaml"
    os.mkfifo(file)

    terminal = Terminal("run", "-f", str(file))
    writer = os.open(file, os.O_WRONLY)  # opens once the other side reads
    terminal.press(b"\x03")
    code = terminal.exit_code()
    os.close(writer)

    assert code == 130
    assert terminal.shown.decode().splitlines()[-1] == "interrupted: this command has ended, runs go on"


def test_no_to_a_question_is_no_interruption() -> None:
    make_run(journal=(RunEnded(t=NOW, state="succeeded", exit_code=0, reason=""),))

    said = holdfast("rm", "digits", answer="n\n")

    assert "interrupted" not in said.err
