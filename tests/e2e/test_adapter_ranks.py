"""Several ranks: saved by two, loaded by one and by four; one preempted in the middle of a save."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from holdfast.checkpoint import load
from holdfast.integrations.dcp import HoldfastReader
from tests.e2e.scripts import adapter_kills

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore")]
SCRIPTS = Path(__file__).parent / "scripts"


def run(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(SCRIPTS / "adapter_ranks.py"), str(ranks), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=200)


def test_what_two_ranks_saved_one_and_four_load(tmp_path: Path) -> None:
    saved = run(2, "save", str(tmp_path))
    assert saved.returncode == 0, saved.stderr[-3000:]

    loaded = run(4, "load", str(tmp_path))
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert len(list(tmp_path.glob("loaded-*"))) == 4

    expected = torch.load(tmp_path / "expected.pt")["model"]
    for name in ("step-7", "from-a-process"):
        found = {"model": {key: torch.zeros_like(one) for key, one in expected.items()}}
        dcp.load(found, storage_reader=HoldfastReader(tmp_path / "tensors", name))
        assert all(torch.equal(found["model"][key], one) for key, one in expected.items())
    for folder in (tmp_path / "files", tmp_path / "tensors"):
        infos = load.checkpoints(folder)
        assert [(info.world, load.verify(folder, info)) for info in infos] == [(2, [])] * len(infos)
        assert list((folder / "staging").glob("*/*")) == []
    stored = sum(path.stat().st_size for path in (tmp_path / "tensors" / "packs").rglob("*.hfp"))
    assert stored < 1.5 * 3 * sum(one.nbytes for one in expected.values())  # the second save added next to nothing


def test_a_rank_preempted_in_a_save_leaves_the_old_checkpoint_whole(tmp_path: Path) -> None:
    ended = run(2, "preempted", str(tmp_path))
    assert ended.returncode != 0

    found = {"w": torch.zeros(100, 1000)}
    dcp.load(found, checkpoint_id=f"holdfast://{tmp_path}/last")
    assert torch.equal(found["w"], torch.ones(100, 1000))

    dcp.save({"w": torch.full((100, 1000), 3.0)}, checkpoint_id=f"holdfast://{tmp_path}/last")
    dcp.load(found, checkpoint_id=f"holdfast://{tmp_path}/last")
    assert found["w"].unique().tolist() == [3.0]
    assert list((tmp_path / "staging").glob("*/*")) == []


@pytest.mark.parametrize("kind", adapter_kills.KINDS)
def test_ranks_killed_at_any_moment_leave_the_old_or_the_new(tmp_path: Path, kind: str) -> None:
    _kill(tmp_path, kind, 6)


@pytest.mark.soak
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kind", adapter_kills.KINDS)
def test_many_killed_ranks_leave_the_old_or_the_new(tmp_path: Path, kind: str) -> None:
    _kill(tmp_path, kind, 60)


def _kill(root: Path, kind: str, kills: int) -> None:
    argv = [sys.executable, str(SCRIPTS / "adapter_kills.py"), str(root), kind, str(kills)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=40 * kills)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.count("whole") == kills, done.stdout
