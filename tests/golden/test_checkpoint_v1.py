"""Checkpoints of format version 1 load for as long as holdfast exists.

`checkpoint-v1/` was written by the first version: two ranks, two checkpoints, a lease. To make the files of a later
version run `python -m tests.golden.test_checkpoint_v1 FOLDER`; those that are here are never written again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from holdfast.checkpoint import lease, load
from holdfast.checkpoint.commit import commit
from holdfast.checkpoint.folder import Folder, hint_at_latest
from holdfast.checkpoint.lease import Lease
from tests.slotparts import contents, new_slot, part_of

GOLDEN = Path(__file__).parent / "checkpoint-v1"


def parts(step: int) -> list:  # type: ignore[type-arg]
    """What was saved at `step`: bytes of a fixed generator."""
    fields = {"term": 1, "sequence": step, "step": step, "world": 2, "metrics": {"loss": 1 / step}}
    return [part_of(seed=10 * step + rank, rank=rank, **fields) for rank in (0, 1)]


def write(root: Path) -> None:
    """Make the golden folder."""
    folder = Folder(root)
    folder.open()
    lease.write(folder, Lease(term=1, claim="golden", attempt=1, base=None, owner={"pid": 1, "host": "a"}, time_s=1.5))
    for step in (1, 2):
        hint_at_latest(folder, commit(folder, parts(step)).file_name)


def test_both_checkpoints_load_as_they_were_saved() -> None:
    infos = load.checkpoints(GOLDEN)

    assert [(info.term, info.sequence, info.step, info.world, info.live) for info in infos] == [
        (1, 1, 1, 2, True),
        (1, 2, 2, 2, True),
    ]
    assert load.problems(GOLDEN) == []
    for info in infos:
        for rank, part in enumerate(parts(info.step)):
            slot = new_slot()
            load.fill(GOLDEN, info, rank, slot, whole=True)
            table = slot.read_table()
            assert contents(slot.view, table) == contents(part.slot, part.table)
            assert {**table, "chunks": 0} == {**part.table, "chunks": 0}


def test_this_version_still_writes_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path)

    golden = {path.relative_to(GOLDEN): path.read_bytes() for path in GOLDEN.rglob("*") if path.is_file()}
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == golden


def test_a_copy_goes_on_from_there(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "copy")
    folder = Folder(tmp_path / "copy")

    assert folder.open() == []
    commit(folder, parts(3))
    assert [info.step for info in load.checkpoints(folder.root)] == [1, 2, 3]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
