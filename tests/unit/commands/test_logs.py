from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from holdfast.events import AttemptStarted
from holdfast.output import Output
from tests.needs import need
from tests.unit.commands.scene import NOW, holdfast, make_run, status, supervised

FIRST = b"[holdfast 2025-11-24 15:30:00] step 10\na1\n[holdfast 2025-11-24 15:40:00] step 20\na2\n"


def started(number: int, at_s: float, offset: int) -> AttemptStarted:
    return AttemptStarted(t=at_s, attempt=number, pid=1, start_ticks=1, log_offset=offset)


def two_attempts() -> None:
    make_run(
        output=FIRST + b"b1\nb2\n",
        journal=(started(1, NOW - 3000, 0), started(2, NOW - 600, len(FIRST))),
    )


def test_the_whole_log_is_printed_byte_for_byte() -> None:
    make_run(output=b"\x1b[31mred\x1b[0m\r50%\r100%\nno newline at the end")

    assert holdfast("logs", "digits").out == "\x1b[31mred\x1b[0m\r50%\r100%\nno newline at the end"


@pytest.mark.parametrize(("number", "expected"), [("1", FIRST.decode()), ("2", "b1\nb2\n")])
def test_one_attempt_is_cut_out_by_its_offsets(number: str, expected: str) -> None:
    two_attempts()

    assert holdfast("logs", "digits", "--attempt", number).out == expected


def test_an_attempt_that_never_was_is_a_usage_error() -> None:
    two_attempts()

    said = holdfast("logs", "digits", "--attempt", "7")

    assert (said.code, said.err) == (2, "error: there is no attempt 7\nhint: attempts so far: 1 to 2\n")


@pytest.mark.parametrize(
    ("since", "first_line"),
    [
        ("2h", "[holdfast 2025-11-24 15:30:00] step 10"),
        ("15m", "[holdfast 2025-11-24 15:40:00] step 20"),
        ("2025-11-24T15:45", "[holdfast 2025-11-24 15:40:00] step 20"),
        ("5m", "b1"),
    ],
)
def test_since_begins_at_the_last_known_moment_before(since: str, first_line: str) -> None:
    two_attempts()

    assert holdfast("logs", "digits", "--since", since).out.splitlines()[0] == first_line


def test_since_what_is_no_time_is_refused() -> None:
    two_attempts()

    assert holdfast("logs", "digits", "--since", "yesterdayish").code == 2


@pytest.mark.parametrize(("count", "expected"), [("0", ""), ("1", "b2\n"), ("3", "a2\nb1\nb2\n")])
def test_tail_counts_lines_from_the_end(count: str, expected: str) -> None:
    two_attempts()

    assert holdfast("logs", "digits", "--tail", count).out == expected


def test_tail_crosses_chunks_and_stops_at_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "output.log"
    lines = [b"%06d" % number + b"x" * (number % 500) for number in range(1000)]
    path.write_bytes(b"\n".join(lines) + b"\n")

    with Output(path) as output:
        for count in (1, 2, 300, 999):
            start = output.last_lines(count)
            assert b"\n".join(lines[-count:]) + b"\n" == path.read_bytes()[start:]
        assert output.last_lines(2000) == 0


def test_holes_are_told_and_never_printed_as_zeros() -> None:
    run = make_run(output=b"a" * 65_535 + b"\n" + b"kept\n")
    with run.output.open("r+b") as log:
        punched = ctypes.CDLL(None, use_errno=True).fallocate(
            log.fileno(), 3, ctypes.c_longlong(0), ctypes.c_longlong(65_536)
        )
    need(punched == 0, "a file system that can punch holes")

    said = holdfast("logs", "digits")

    assert said.out == "kept\n"
    assert said.err == "64.0 KiB from byte 0 on were rotated away\n"


def test_from_byte_continues_where_one_stopped() -> None:
    make_run(output=b"0123456789\n")

    assert holdfast("logs", "digits", "--from-byte", "7").out == "789\n"


def test_follow_shows_what_comes_and_ends_with_the_run() -> None:
    run = make_run(output=b"one\n")

    def grow(asked: int) -> None:
        with run.output.open("ab") as log:
            log.write(b"line %d\n" % asked)

    with supervised(run, status()) as fake:
        fake.on_status = lambda asked: grow(asked) if asked < 3 else fake.ends("succeeded", 0)
        said = holdfast("logs", "digits", "-f")

    assert said.out == "one\nline 1\nline 2\n"
    assert f"--from-byte {run.output.stat().st_size}" in said.err


def test_a_byte_past_the_end_is_told() -> None:
    make_run(output=b"ten bytes\n")

    said = holdfast("logs", "digits", "--from-byte", "11")

    assert (said.code, "has 10 bytes" in said.err) == (2, True)
