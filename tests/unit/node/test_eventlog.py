"""Lines of archiver.jsonl survive a full disk."""

from __future__ import annotations

import json
from pathlib import Path

from holdfast.node.eventlog import EventLog


def names(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_lines_are_appended(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log")
    log.write("a", x=1)
    log.write("b")

    assert names(tmp_path / "log") == ["a", "b"]


def test_what_could_not_be_written_comes_with_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "away" / "log"
    log = EventLog(path)
    log.write("a")
    path.parent.mkdir()
    log.write("b")

    assert names(path) == ["a", "b"]


def test_the_oldest_are_given_up_when_it_takes_long(tmp_path: Path) -> None:
    path = tmp_path / "away" / "log"
    log = EventLog(path)
    for number in range(30):
        log.write(f"{number}", text="x" * 100_000)
    path.parent.mkdir()
    log.write("last")

    assert names(path)[-2:] == ["29", "last"]
    assert path.stat().st_size <= 1 << 20


def test_the_newest_line_of_a_name_is_found_also_while_it_waits(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "none" / "log")
    assert log.last("a") is None
    log.write("a", n=1)
    log.write("b", event_like='"event":"a",')
    assert (log.last("a") or {})["n"] == 1

    (tmp_path / "none").mkdir()
    log.write("a", n=2)
    assert (EventLog(tmp_path / "none" / "log").last("a") or {})["n"] == 2


def test_a_line_that_a_power_cut_left_is_passed_over(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log")
    log.write("a", n=1)
    with (tmp_path / "log").open("ab") as file:
        file.write(b'{"t":1,"event":"a","n":\0\0\n')

    assert (log.last("a") or {})["n"] == 1
