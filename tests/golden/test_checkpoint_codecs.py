"""A checkpoint with every codec loads for as long as holdfast exists.

`checkpoint-v1-codecs/` was written once, by `python -m tests.golden.test_checkpoint_codecs FOLDER`. Another version of
zstd may write other bytes, so it is only ever read.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from holdfast.checkpoint import codecs, load, pack
from holdfast.checkpoint.canonical import digest
from holdfast.checkpoint.commit import Part, publish
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.manifest import Manifest
from holdfast.checkpoint.packer import Packer
from holdfast.fsio import DISK
from tests.slotparts import contents, new_slot, part_of

GOLDEN = Path(__file__).parent / "checkpoint-v1-codecs"
WIDTHS = (1, 2, 4, 8, 1)
SIZES = (5000, 4096, 9003, 8001, 300)


def part() -> Part:
    """What was saved: bytes of a fixed generator, half of them zeros but for the last chunk, which stays as it is."""
    made = part_of(seed=7, term=1, sequence=1, step=1, sizes=SIZES)
    for chunk in made.table["chunks"][:-1]:
        start = chunk["offset"]
        half = chunk["bytes"] // 2
        made.slot[start : start + half] = bytes(half)
    return made


def write(root: Path) -> None:
    """Make the golden folder."""
    folder, saved = Folder(root), part()
    folder.open()
    chunks = []
    with Packer(folder) as packer:
        for width, chunk, raw in zip(WIDTHS, saved.table["chunks"], contents(saved.slot, saved.table), strict=True):
            codec, stored = codecs.encode(raw, width)
            place = packer.add(pack.padded(stored), len(stored), chunk_id=digest(raw), codec=codec, raw_bytes=len(raw))
            chunks.append({**chunk, "id": digest(raw), "pack": place.pack, "offset": place.offset})
        packs = packer.finish()
    table = {name: value for name, value in saved.table.items() if name != "chunks"}
    ranks = ({"table": table, "chunks": chunks},)
    publish(folder, Manifest(position=Position(1, 1), parent=None, base=None, packs=tuple(packs), ranks=ranks))


def test_every_codec_is_read_as_it_was_saved() -> None:
    (info,) = load.checkpoints(GOLDEN)
    name = info.packs[0].name
    with closing(DISK.open(pack.path(GOLDEN, name))) as file:
        records = pack.read_layout(file, name).records
    slot, saved = new_slot(), part()
    load.fill(GOLDEN, info, 0, slot, whole=True)

    assert load.problems(GOLDEN) == []
    assert load.verify(GOLDEN, info) == []
    assert contents(slot.view, slot.read_table()) == contents(saved.slot, saved.table)
    assert [record.codec for record in records] == [1, 2, 4, 8, 0]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
