"""However one trains: interrupted and resumed, every bit is as if nothing had happened.

Each technique runs with plain copies, and with a device that copies as late as the fence lets it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import holdfast
from holdfast.checkpoint.state import encode
from holdfast.checkpoint.tensors import raw
from holdfast.plan import Every
from holdfast.train import session
from tests.fake_device import FakeDevice
from tests.fake_node import FakeNode
from tests.unit.train.scripts import die
from tests.unit.train.techniques import TECHNIQUES, Made

KILLS = (2, 5)


def train(node: FakeNode, build: Callable[[torch.device], Made], device: torch.device, kill_at: int) -> Any:
    """All that the objects hold after two epochs of four steps; None when killed on the way."""
    torch.manual_seed(4)
    data = DataLoader(torch.randn(4, 4, 6), batch_size=None, shuffle=True)  # type: ignore[arg-type]
    made = build(device)
    run = holdfast.Run(**made.objects, data=data)
    for x in run.steps(data, epochs=2):
        node.archive_now()
        if run.step == kill_at:
            die(run)
            return None
        made.step(x.to(device), run.step)
    run.close()
    held = encode({name: value.state_dict() for name, value in made.objects.items()})
    bits = {name: raw(tensor).cpu().contiguous().numpy().tobytes() for name, tensor in held.tensors.items()}
    return json.dumps(held.tree), bits


def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, technique: str, device: torch.device) -> None:
    """Killed at several steps and resumed, `technique` ends as it does undisturbed."""
    calm = FakeNode(tmp_path / "calm", every=Every(auto=False), keep_last=1)
    monkeypatch.setenv("HOLDFAST_RUN_DIR", str(calm.root))
    expected = train(calm, TECHNIQUES[technique], device, -1)
    calm.close()

    for kill_at in KILLS:
        node = FakeNode(tmp_path / f"killed-{kill_at}", every=Every(auto=False, steps=1), keep_last=1)
        monkeypatch.setenv("HOLDFAST_RUN_DIR", str(node.root))
        assert train(node, TECHNIQUES[technique], device, kill_at) is None
        assert node.kept[-1].table["step"] >= kill_at - 1
        assert train(node, TECHNIQUES[technique], device, -1) == expected
        node.close()


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("copies", ["plain", "late"])
def test_interrupted_and_resumed_is_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, technique: str, copies: str
) -> None:
    if copies == "late":
        monkeypatch.setattr(session, "engine_here", FakeDevice)

    check(tmp_path, monkeypatch, technique, torch.device("cpu"))
