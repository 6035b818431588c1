"""Step records where the disk is full, and behind a line that was cut off."""

from __future__ import annotations

import json
import resource
from pathlib import Path

from holdfast.train.records import Records


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines() if line.endswith("}")]


def test_records_wait_for_room_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.jsonl"
    records = Records(path, attempt=1, sync_always=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    records.step(1, 0, {})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))  # the next line fits in part
        records.step(2, 0, {})
        records.step(3, 0, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps(path) == [1]

    records.step(4, 0, {})

    assert steps(path) == [1, 2, 3, 4]
    records.close()


def test_a_record_behind_a_torn_line_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.jsonl"
    path.write_text('{"step":1}\n{"st')

    records = Records(path, attempt=2, sync_always=False)
    records.step(2, 0, {})
    records.close()

    assert steps(path) == [1, 2]
