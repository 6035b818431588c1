"""What the harness' own engines read from a run that a fault has damaged."""

from __future__ import annotations

from pathlib import Path

from bench.engines.holdfast_alone import passed_over


def test_what_was_passed_over_is_read_behind_lines_that_are_damaged(tmp_path: Path) -> None:
    lines = [
        b'{"t":1,"event":"restored","fell_back":["long ago"]',
        b'{"t":1,"event";"restored"\xff',
        b'{"t":2,"event":"restored","fell_back":["step 3 was passed over"]}',
        b'{"t":3,"event":"warn',
    ]
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "rank-00000.jsonl").write_bytes(b"\n".join(lines))

    assert passed_over(tmp_path) == ["step 3 was passed over"]
