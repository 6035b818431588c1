"""What is on the disk already is not written again, as long as it can be relied on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.checkpoint import collect, load, pack
from holdfast.checkpoint.commit import Committed, Part, commit, publish
from holdfast.checkpoint.folder import Folder
from holdfast.checkpoint.known import read_back
from holdfast.checkpoint.packer import Packer
from holdfast.checkpoint.slots import TABLE_VERSION, Slot
from holdfast.checkpoint.snapshot import Spec, copy_in, plan
from holdfast.fsio import BLOCK
from holdfast.plan import Keep
from holdfast.testing.crashdisk import CrashDisk
from tests.slotparts import contents, new_slot, part_of, table_of

ROOT = Path("/checkpoints")
SIZES = (50_000, 4096, 100, 90_000)


@pytest.fixture
def folder() -> Folder:
    return opened(CrashDisk())


def opened(disk: CrashDisk) -> Folder:
    """The folder as another process finds it."""
    made = Folder(ROOT, disk)
    made.open()
    return made


def changed(part: Part, index: int, **fields: Any) -> Part:
    """The same but for the first byte of one chunk."""
    table = {**part.table, **fields, "save_id": f"1-{fields['step']}"}
    slot = memoryview(bytearray(part.slot))
    slot[part.table["chunks"][index]["offset"]] ^= 1
    return Part(table, slot)


def loads(folder: Folder, part: Part) -> bool:
    """Whether the checkpoint of that step is what was saved, packs of others included."""
    info = next(info for info in load.checkpoints(ROOT, folder.disk) if info.step == part.table["step"])
    slot = new_slot()
    load.fill(ROOT, info, 0, slot, whole=True, disk=folder.disk)
    return contents(slot.view, slot.read_table()) == contents(part.slot, part.table)


FIRST = part_of(seed=1, sequence=1, step=1, sizes=SIZES)
SECOND = changed(FIRST, 2, sequence=2, step=2)


def test_only_the_chunk_that_changed_is_written(folder: Folder) -> None:
    first, second = commit(folder, [FIRST]), commit(folder, [SECOND])

    assert second.written_bytes == 3 * BLOCK  # header, payload, footer
    assert {entry.name for entry in first.manifest.packs} < {entry.name for entry in second.manifest.packs}
    assert loads(folder, FIRST)
    assert loads(folder, SECOND)


def test_sizes_say_what_a_checkpoint_needs_and_what_it_added(folder: Folder) -> None:
    for part in (FIRST, SECOND):
        commit(folder, [part])

    assert [(info.size_bytes, info.added_bytes) for info in load.checkpoints(ROOT, folder.disk)] == [
        (sum(SIZES), sum(SIZES)),
        (sum(SIZES), SIZES[2]),
    ]


def test_another_process_reads_a_pack_whole_before_it_relies_on_it(folder: Folder) -> None:
    name = commit(folder, [FIRST]).manifest.packs[0].name
    flip(folder, name, BLOCK + 7)

    after = commit(opened(folder.disk), [SECOND])  # type: ignore[arg-type]

    assert name not in {entry.name for entry in after.manifest.packs}
    assert loads(folder, SECOND)


def test_it_relies_on_one_that_is_whole(folder: Folder) -> None:
    commit(folder, [FIRST])

    assert commit(opened(folder.disk), [SECOND]).written_bytes == 3 * BLOCK  # type: ignore[arg-type]


def flip(folder: Folder, name: str, at: int) -> None:
    """One bit on the medium."""
    target = pack.path(ROOT, name)
    file = folder.disk.open(target)
    raw = bytearray(file.size())
    file.read(0, [memoryview(raw)])
    raw[at] ^= 1
    folder.disk.remove(target)
    folder.disk.create(target).append([bytes(raw)])


@pytest.mark.parametrize("harm", ["gone", "short"])
def test_a_pack_that_is_gone_or_short_is_not_relied_on(folder: Folder, harm: str) -> None:
    name = commit(folder, [FIRST]).manifest.packs[0].name
    commit(folder, [SECOND])
    folder.disk.remove(pack.path(ROOT, name))
    if harm == "short":
        folder.disk.create(pack.path(ROOT, name)).append([bytes(BLOCK)])
    third = changed(FIRST, 3, sequence=3, step=3)

    commit(folder, [third])

    assert loads(folder, third)


@pytest.mark.parametrize("restored", [True, False])
def test_a_name_that_a_power_cut_could_undo_is_made_durable_before_it_is_relied_on(
    folder: Folder, *, restored: bool
) -> None:
    made, disk = commit(folder, [FIRST]), CrashDisk()
    copied = opened(disk)
    (entry,) = made.manifest.packs
    with pack.opened(folder.disk, ROOT, entry.name, entry.size_bytes) as source:
        raw = bytearray(entry.size_bytes)
        source.read(0, [memoryview(raw)])
    target = disk.create(copied.pack_path(entry.name))
    target.append([raw])
    target.sync()
    publish(copied, made.manifest)
    if restored:
        (info,) = load.checkpoints(ROOT, disk)
        load.fill(ROOT, info, 0, new_slot(), whole=True, known=copied.known, disk=disk)

    commit(copied, [SECOND])

    assert loads(opened(disk.reboot()), SECOND)


def test_a_pack_that_goes_takes_no_chunk_with_it_that_another_holds(folder: Folder) -> None:
    made, (chunk, *_) = commit(folder, [FIRST]).manifest, FIRST.table["chunks"]
    view = FIRST.slot[chunk["offset"] :][: pack.padded(bytes(chunk["bytes"])).nbytes]
    with Packer(Folder(ROOT, folder.disk)) as packer:  # of a writer that does not know of it
        packer.add(view, chunk["bytes"])
        (other,) = packer.finish()
    folder.known.trust(other, read_back(ROOT, folder.disk, other))

    folder.known.forget(made.packs[0].name)

    found = folder.known.find(made.ranks[0]["chunks"][0]["id"])
    assert found is not None
    assert found[0] == other


def test_a_pack_of_which_a_restore_read_a_part_is_not_relied_on_for_the_rest(folder: Folder) -> None:
    made = commit(folder, [FIRST]).manifest
    commit(folder, [SECOND])  # which needs all of that pack but chunk 2
    flip(folder, made.packs[0].name, made.ranks[0]["chunks"][2]["offset"] + BLOCK)
    again = opened(folder.disk)  # type: ignore[arg-type]
    load.fill(
        ROOT, load.checkpoints(ROOT, again.disk)[1], 0, new_slot(), whole=True, known=again.known, disk=again.disk
    )
    third = part_of(seed=1, sequence=3, step=3, sizes=SIZES)

    commit(again, [third])

    assert loads(again, third)


def test_what_is_swept_is_not_offered_any_more(folder: Folder) -> None:
    first = commit(folder, [FIRST]).manifest.ranks[0]["chunks"][0]["id"]
    for step in (2, 3):
        commit(folder, [part_of(seed=step, sequence=step, step=step)])
    assert folder.known.find(first) is not None

    collect.retain(folder, Keep(last=2))

    assert folder.known.find(first) is None


def test_damage_that_is_found_is_healed_by_the_next_save(folder: Folder) -> None:
    entry = commit(folder, [FIRST]).manifest.packs[0]
    flip(folder, entry.name, BLOCK + 7)
    with pytest.raises(load.Damaged, match="damaged chunk at offset 0"):
        folder.known.verify(entry)

    commit(folder, [SECOND])

    assert entry.name in folder.known.damaged
    assert loads(folder, SECOND)


def test_what_retention_removed_is_not_relied_on(folder: Folder) -> None:
    for step, seed in enumerate((1, 2, 3, 1), 1):
        commit(folder, [part_of(seed=seed, sequence=step, step=step)])
        collect.retain(folder, Keep(last=2))

    assert loads(folder, part_of(seed=1, sequence=4, step=4))


def test_a_manifest_that_was_read_is_not_read_again(folder: Folder) -> None:
    made = [commit(folder, [part_of(seed=step, sequence=step, step=step)]) for step in (1, 2, 3)]
    disk = folder.disk
    opened_paths: list[str] = []
    real = disk.open
    disk.open = lambda path, **how: opened_paths.append(path.name) or real(path, **how)  # type: ignore[method-assign]

    commit(folder, [part_of(seed=4, sequence=4, step=4)])

    assert not {one.file_name for one in made[:2]} & set(opened_paths)


def save_module(folder: Folder, module: torch.nn.Module, slot: Slot, step: int) -> tuple[Committed, int]:
    """Save a module as a rank does; what was committed, and the bytes of its tensors that may change."""
    tensors = dict(module.named_parameters())
    kinds = {name: "trainable" if tensor.requires_grad else "frozen" for name, tensor in tensors.items()}
    layout = plan([Spec(n, kinds[n], t.dtype, tuple(t.shape)) for n, t in tensors.items()])
    slot.reserve(layout.end)
    copy_in(slot, layout, tensors, zero_gaps=True)
    table = {**table_of(sequence=step, step=step)[0], "version": TABLE_VERSION, "chunks": layout.table}
    slot.write_table(table, layout.end)
    moving = sum(t.numel() * t.element_size() for t in tensors.values() if t.requires_grad)
    return commit(folder, [Part(slot.read_table(), slot.view)]), moving


class Adapted(torch.nn.Module):
    """A frozen linear layer with a low-rank adapter beside it, as LoRA has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = torch.nn.Linear(width, width).requires_grad_(False)
        self.norm = torch.nn.LayerNorm(width).requires_grad_(False)
        self.down = torch.nn.Linear(width, 64, bias=False)
        self.up = torch.nn.Linear(64, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.base(x) + self.up(self.down(x)))


def test_the_second_checkpoint_of_a_frozen_model_writes_little_more_than_what_changed(folder: Folder) -> None:
    model = torch.nn.Sequential(*(Adapted(1024) for _ in range(2)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    slot = new_slot()
    first, _ = save_module(folder, model, slot, 1)
    model(torch.randn(4, 1024)).square().sum().backward()
    optimizer.step()

    second, moving = save_module(folder, model, slot, 2)

    assert first.written_bytes > 8 << 20
    assert moving < second.written_bytes <= 1.05 * moving
