"""Weights that tell which step wrote each element, and a diary that tells what happened."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.job import Diary, Job, Weights, read


def test_each_element_tells_its_step() -> None:
    weights = Weights(100_000)
    weights.fill(7)
    whole = weights.found()
    other = Weights(100_000)
    other.fill(8)
    weights.layer1.data[:5] = other.layer1.data[:5]

    assert whole == {7: sum(each.numel() for each in weights.parameters())}
    assert weights.found() == {7: whole[7] - 5, 8: 5}


def test_a_flipped_bit_is_of_no_step() -> None:
    for bit in range(32):
        weights = Weights(100_000)
        weights.fill(7)
        weights.layer4.data.view(torch.int32)[0] ^= 1 << bit if bit < 31 else -(1 << 31)
        found = weights.found()

        assert len(found) == 2
        assert not any(0 < step < 7 for step in found)


def test_cleared_weights_are_of_no_step() -> None:
    weights = Weights(10_000)
    weights.fill(3)
    weights.clear()

    assert list(weights.found()) == [-1]


def test_the_diary_tells_what_was_acknowledged(tmp_path: Path) -> None:
    job = Job(tmp_path / "diary", size_bytes=10_000, last=3)
    for step in job.steps():
        if step == 2:
            job.refused(step, "no\nroom")
        else:
            job.saved(step)
    job.done()
    told = read(tmp_path / "diary")

    assert (told.begun, told.saved, told.refused, told.done) == ([1, 2, 3], [1, 3], ["2 no room"], True)


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    Diary(tmp_path / "diary").write("saved 1")
    with (tmp_path / "diary").open("a") as file:
        file.write("saved 12")

    assert read(tmp_path / "diary").saved == [1]
