"""The same promises on a GPU: `make gpu`. Not part of `make test`, which asks for no device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import holdfast
from holdfast.train.check import SnapshotChanged
from tests.fake_node import FakeNode
from tests.unit.train.techniques import TECHNIQUES
from tests.unit.train.test_techniques import check

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.*deprecated"),
]
NOT_THERE = {"quantised"}  # per-channel quantised tensors exist on the CPU only


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.cuda.is_available(), "these tests need a CUDA device"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.mark.parametrize("technique", [name for name in TECHNIQUES if name not in NOT_THERE])
def test_interrupted_and_resumed_is_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, technique: str
) -> None:
    monkeypatch.setenv("HOLDFAST_CHECK_SNAPSHOT", "1")

    check(tmp_path, monkeypatch, technique, torch.device("cuda"))


def big(node: FakeNode, monkeypatch: pytest.MonkeyPatch, **more: bool) -> tuple[torch.nn.Linear, holdfast.Run]:
    """2 GiB of parameters, whose copy takes long enough to be written into."""
    monkeypatch.setenv("HOLDFAST_RUN_DIR", str(node.root))
    model = torch.nn.Linear(16384, 32768, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return model, holdfast.Run(model=model, optimizer=optimizer, **more)


def test_a_write_before_the_fence_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode(tmp_path / "run")
    model, run = big(node, monkeypatch, check_snapshot=True)
    batches = iter(run.steps([0, 1, 2]))
    next(batches)
    next(batches)

    model.weight.data.add_(1)

    with pytest.raises(SnapshotChanged, match=r"model/weight"):
        next(batches)
    run._session.abandon()
    node.close()


def test_a_boundary_does_not_wait_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode(tmp_path / "run")
    _, run = big(node, monkeypatch)
    batches = iter(run.steps([0, 1, 2]))
    next(batches)
    next(batches)  # the first save locks the slot's memory

    assert not run._session._saver._copying[-1].flight.finished()  # type: ignore[union-attr]
    run._session.abandon()
    node.close()
