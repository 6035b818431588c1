"""The journal file."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from holdfast.events import Event, FindingCleared, RunCreated, StopRequested
from holdfast.journal import Journal, read

EVENTS: list[Event] = [
    RunCreated(t=1.0, run="r"),
    StopRequested(t=2.0, how="stop", grace_s=3.0),
    FindingCleared(t=3.0, id="hang"),
]


def write(path: Path, *events: Event) -> None:
    made = Journal(path)
    for event in events:
        made.append(event)
    made.close()


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    write(tmp_path / "j", *EVENTS)

    assert read(tmp_path / "j") == (EVENTS, (tmp_path / "j").stat().st_size)


def test_a_torn_last_line_is_left_to_the_reader_and_cut_by_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path, EVENTS[0])
    whole = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"v":1,"n":1,"event":"stop_re')

    assert read(path) == (EVENTS[:1], whole)

    write(path, EVENTS[2])
    assert read(path, whole)[0] == [EVENTS[2]]


def test_reading_goes_on_at_an_offset(tmp_path: Path) -> None:
    write(tmp_path / "j", EVENTS[0])
    _, offset = read(tmp_path / "j")
    write(tmp_path / "j", EVENTS[2])

    assert read(tmp_path / "j", offset)[0] == [EVENTS[2]]


def test_an_event_of_a_newer_version_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'{"v":9,"n":0,"event":"teleported","t":1}\n')

    assert read(tmp_path / "j")[0] == []


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"nonsense\n")

    with pytest.raises(ValueError, match="line 0"):
        read(tmp_path / "j")


def test_a_disk_that_fills_up_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    made = Journal(tmp_path / "j")
    made.append(EVENTS[0])
    whole = (tmp_path / "j").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 10, hard))  # the next line fits only in part
    try:
        with pytest.raises(OSError, match="short write"):
            made.append(EVENTS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    made.append(EVENTS[1])
    made.close()

    assert read(tmp_path / "j")[0] == EVENTS[:2]
