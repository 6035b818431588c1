"""What people are told about typical mistakes, word for word. Run this file to write them anew; read the diff."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.spec import RunFileMistakes, Source, load

CASES = sorted((Path(__file__).parents[2] / "golden" / "spec-errors").glob("*.yaml"))


def told(case: Path) -> str:
    with pytest.raises(RunFileMistakes) as caught:
        load([Source(case.name, case.read_text())], environ={})
    return f"{caught.value}\n"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_people_are_told_exactly_this(case: Path) -> None:
    assert told(case) == case.with_suffix(".txt").read_text()


if __name__ == "__main__":
    for each in CASES:
        each.with_suffix(".txt").write_text(told(each))
