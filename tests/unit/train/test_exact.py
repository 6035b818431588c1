"""Interrupted at every step and resumed, a run ends as if nothing had happened, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.plan import Every
from tests.fake_node import FakeNode
from tests.unit.train.scripts import LOADERS, LOOPS, Killed, Trial

PAIRS = [(loop, "plain") for loop in LOOPS] + [("steps", loader) for loader in LOADERS if loader != "plain"]
PAIRS += [("epochs", "persistent"), ("wrapped", "workers"), ("two_in_turn", "workers")]
SLOW = [pair for pair in PAIRS if "workers" in pair[1] or pair[1] == "persistent"]  # a process each: every third step
CASES = [(*pair, 3 if pair in SLOW else 1) for pair in PAIRS]
CASES += [pytest.param(*pair, 1, marks=pytest.mark.soak) for pair in SLOW]


def attempt(node: FakeNode, loop: str, loader: str, kill_at: int | None, *, again: bool = False) -> str | None:
    trial = Trial(node, kill_at, LOADERS[loader], disturbed=again)
    try:
        return LOOPS[loop](trial)
    except Killed:
        trial.run._session.abandon()
        return None


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Every], FakeNode]:
    def make(name: str, every: Every) -> FakeNode:
        node = FakeNode(tmp_path / name, every=every, keep_last=1)
        monkeypatch.setenv("HOLDFAST_RUN_DIR", str(node.root))
        return node

    return make


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:'set_vital' is deprecated")
@pytest.mark.parametrize(("loop", "loader", "apart"), CASES)
def test_killed_at_every_step_equals_never_killed(
    fresh: Callable[[str, Every], FakeNode], loop: str, loader: str, apart: int
) -> None:
    calm = fresh("calm", Every(auto=False))
    expected = attempt(calm, loop, loader, None)
    total = calm.kept[-1].table["step"]
    calm.close()
    found = {}

    for kill_at in range(1, total, apart):
        node = fresh(f"killed-{kill_at}", Every(auto=False, steps=1))
        assert attempt(node, loop, loader, kill_at) is None
        assert node.kept[-1].table["step"] == kill_at
        found[kill_at] = attempt(node, loop, loader, None, again=True)
        node.close()

    assert found == dict.fromkeys(range(1, total, apart), expected)
