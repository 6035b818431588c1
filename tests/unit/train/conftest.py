"""A node for each test, in its own directory, with the environment a trainer finds there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fake_node import FakeNode

torch.set_num_threads(1)  # tiny tensors: threads only get in each other's way


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    made = FakeNode(tmp_path / "digits")
    for name, value in made.environ().items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()
