from __future__ import annotations

import io

import pytest
from rich.console import Console

from holdfast.commands import attach
from tests.unit.commands.scene import holdfast, make_run, status, supervised
from tests.unit.commands.terminal import Terminal


def test_ctrl_c_leaves_the_run_running_and_says_how_to_come_back() -> None:
    run = make_run(output=b"epoch 1\n10%\r55%\nhalf a li")

    with supervised(run, status()) as fake:
        terminal = Terminal("attach", "digits")
        terminal.await_text(b"step 18200 of 50000")
        terminal.await_text(b"0.96 steps/s")
        terminal.press(b"\x03")
        code = terminal.exit_code()

    assert code == 130
    assert b"digits keeps running" in terminal.shown
    assert b"holdfast attach digits comes back" in terminal.shown
    assert b"55%" in terminal.shown
    assert b"10%" not in terminal.shown  # a terminal would have overwritten it
    assert b"half a li" in terminal.shown
    assert fake.asked == []


def test_a_terminal_shows_lines_as_they_come_and_ends_with_the_run() -> None:
    run = make_run(output=b"first\n")

    with supervised(run, status(restarts=0)) as fake:
        terminal = Terminal("attach", "digits")
        terminal.await_text(b"first")
        with run.output.open("ab") as log:
            log.write(b"second\n")
        terminal.await_text(b"second")
        fake.ends("failed", 13)
        code = terminal.exit_code()

    assert code == 13
    assert b"hint: holdfast explain digits" in terminal.shown


def test_without_a_terminal_it_is_the_plain_log() -> None:
    run = make_run(output=b"".join(b"line %d\n" % number for number in range(30)))
    full = {"id": "disk-full", "severity": "error", "message": "no room", "hint": "make room"}

    with supervised(run, status(findings=[full])) as fake:
        fake.on_status = lambda asked: fake.ends("stopped", 75) if asked == 3 else None
        said = holdfast("attach", "digits")

    assert said.code == 75
    assert said.out.splitlines() == [f"line {number}" for number in range(10, 30)]
    assert said.err.count("finding disk-full: no room\nhint: make room\n") == 1
    assert said.err.endswith(
        "digits stopped at step 18200 of 50000, epoch 7, after 3 restarts\nhint: holdfast resume digits\n"
    )


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_what_stands_below_the_output_takes_two_lines(columns: int) -> None:
    console = Console(width=columns, file=io.StringIO())

    with console.capture() as shown:
        console.print(attach.standing(status()))

    head, below = shown.get().splitlines()
    assert "digits running ━" in head
    assert head.endswith(" step 18200 of 50000, epoch 7")
    assert below.startswith("loss 0.3125, lr 0.001, 0.96 steps/s")
