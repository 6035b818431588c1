"""A checkpoint folder with checkpoints in it, a mirror beside it, and what a resume would find."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.checkpoint import lease, load
from holdfast.checkpoint.commit import commit
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.mirror.keeper import Keeper
from holdfast.stores import Patience, Store, connect
from tests.labs.servers import BUCKET, Server
from tests.slotparts import contents, new_slot, part_of

QUICK = Patience(deadline_s=30.0, first_s=0.01, most_s=0.1)  # a machine may stand still between two tries


@dataclass
class Machine:
    """One machine's folder."""

    root: Path

    def folder(self) -> Folder:
        folder = Folder(self.root)
        folder.own()
        folder.open()
        return folder

    def begin(self, term: int, *, base: Position | None = None, claim: str = "") -> Lease:
        """An attempt takes the lease."""
        folder = self.folder()
        taken = Lease(
            term=term, claim=claim or uuid.uuid4().hex, attempt=1, base=base, owner={"host": "here"}, time_s=1.0
        )
        lease.write(folder, taken)
        folder.leave()
        return taken

    def save(self, *, seed: int, flat: bool = False, **fields: Any) -> CheckpointInfo:
        """A checkpoint of random bytes; `flat`: of bytes that compress."""
        folder = self.folder()
        part = part_of(seed=seed, **fields)
        if flat:
            for chunk in part.table["chunks"]:
                start = chunk["offset"]
                part.slot[start : start + chunk["bytes"]] = bytes(index % 7 for index in range(chunk["bytes"]))
        commit(folder, [part])
        folder.leave()
        return self.newest()

    def newest(self) -> CheckpointInfo:
        return load.checkpoints(self.root)[-1]

    def keeper(self, store: Store) -> Keeper:
        return Keeper(self.root, store)


def state_of(root: Path) -> tuple[int, list[bytes]]:
    """Step and bytes of what a resume would continue from, from the folder at `root`."""
    slot = new_slot()

    def into_slot(info: CheckpointInfo) -> list[str]:
        load.fill(root, info, 0, slot, whole=True)
        return []

    chosen = load.choose(root, attempt=into_slot)
    assert chosen.info is not None
    return chosen.info.step, contents(slot.view, slot.read_table())


Place = Callable[[], Store]


def place(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A way to connect to an empty mirror of a kind, again and again."""
    if name == "directory":
        return lambda: connect(str(tmp_path / "mirror"), {}, QUICK)
    server: Server = request.getfixturevalue(name)
    url = f"s3://{BUCKET}/{uuid.uuid4()}"
    return lambda: connect(url, server.environ(home=tmp_path), QUICK)
