"""`Run(init=…)`: the weights of another checkpoint, and nothing else of it, until the run has one of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import holdfast
from holdfast.checkpoint import making
from holdfast.errors import UsageError
from holdfast.train.weights import WeightsMismatch, begin
from tests.tensorparts import save


def test_modules_of_that_name_are_filled_and_the_rest_is_said_to_be_fresh(tmp_path: Path) -> None:
    made, other = nn.Linear(3, 2), nn.Linear(3, 2)
    making.make(tmp_path / "base", {"model": made.state_dict()}, reason="test")
    optimizer = torch.optim.SGD(other.parameters(), lr=0.5)

    said = begin(tmp_path / "base", {"model": other, "optimizer": optimizer, "ema": nn.Linear(1, 1)})

    assert torch.equal(other.weight, made.weight)
    assert said == f"model begins with the weights of {tmp_path / 'base'} (step 0); fresh: optimizer, ema"


def test_the_step_and_the_optimizer_of_a_run_s_checkpoint_stay_where_they_are(tmp_path: Path) -> None:
    made, other = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.5)
    save(tmp_path, {"model": made.state_dict(), "optimizer": optimizer.state_dict()}, step=40)
    fresh = torch.optim.SGD(other.parameters(), lr=0.1)

    said = begin(f"{tmp_path}@40", {"model": other, "optimizer": fresh})

    assert "step 40" in said
    assert fresh.param_groups[0]["lr"] == 0.1


def test_a_target_without_any_such_module_is_refused(tmp_path: Path) -> None:
    making.make(tmp_path / "base", {"net": nn.Linear(3, 2).state_dict()}, reason="test")

    with pytest.raises(UsageError, match="holds net, and Run was given no module of such a name"):
        begin(tmp_path / "base", {"model": nn.Linear(3, 2)})
    with pytest.raises(WeightsMismatch):
        begin(tmp_path / "base", {"net": nn.Linear(4, 2)})


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    making.make(tmp_path / "base", {"model": {"w": torch.ones(3)}}, reason="imported from x.pt")

    with pytest.raises(UsageError, match="holds checkpoints already"):
        making.make(tmp_path / "base", {"model": {"w": torch.ones(3)}}, reason="again")

    assert torch.equal(holdfast.load(tmp_path / "base")["model"]["w"], torch.ones(3))


def test_a_folder_with_other_files_does_not_become_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")

    for root, said in ((tmp_path, "holds other files"), (tmp_path / "train.py", "is a file")):
        with pytest.raises(UsageError, match=said):
            making.make(root, {"model": {"w": torch.ones(3)}}, reason="test")

    assert [tmp_path / "train.py"] == list(tmp_path.iterdir())
