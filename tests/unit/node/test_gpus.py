"""The book of devices: whole, of this boot, and without the dead."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast import fsio, process, runs
from holdfast.node import gpus, nvidia, sweep
from holdfast.turn import Waiting
from holdfast.units import Accelerators
from tests.fake_nvidia import attempt_of

BOOK = runs.runtime_home() / "gpus.json"


@pytest.fixture
def living(tmp_path: Path) -> Iterator[str]:
    """The folder of a run with a process of an attempt, and of nothing else."""
    run = str(tmp_path / "digits")
    with attempt_of(run):
        yield run
    gpus.change(lambda book: book.without(run))


def uuid() -> str:
    """The name of a device that no other test has."""
    return f"GPU-{secrets.token_hex(4)}"


def test_what_one_writes_the_next_reads(living: str) -> None:
    mine, me = uuid(), Waiting(dir=living, wants=Accelerators(count=2, kind="A100"), since_s=7.5)
    gpus.change(lambda book: book.queued(me))
    assert me in gpus.look().waiting

    gpus.change(lambda book: book.given(living, [mine]))

    assert gpus.look().claims[mine] == living
    assert me not in gpus.look().waiting
    assert BOOK.stat().st_mode & 0o777 == 0o600


def test_the_dead_are_struck_out(living: str, tmp_path: Path) -> None:
    mine, theirs, dead = uuid(), uuid(), str(tmp_path / "dead")
    gone = Waiting(dir=f"{dead}-2", wants=Accelerators(count=1), since_s=0.0)

    gpus.change(lambda book: book.given(living, [mine]).given(dead, [theirs]).queued(gone))

    assert mine in gpus.look().claims
    assert theirs not in gpus.look().claims
    assert gone not in gpus.look().waiting


def test_what_an_attempt_was_given_is_seen_by_its_process_whichever_way_its_folder_was_reached(tmp_path: Path) -> None:
    mine, other = uuid(), uuid()
    (tmp_path / "link").symlink_to(tmp_path)

    with attempt_of(str(tmp_path / "link" / "digits"), CUDA_VISIBLE_DEVICES=f"{mine},{other}") as pid:
        given, run = sweep.given(), nvidia.run_of(pid)

    assert {given[mine], given[other], run} == {str(tmp_path / "digits")}


@pytest.mark.parametrize("damage", ["boot", "version", "text", "gone"])
def test_a_book_of_another_boot_and_a_damaged_one_are_empty(living: str, damage: str) -> None:
    mine = uuid()
    gpus.change(lambda book: book.given(living, [mine]))
    if damage == "gone":
        BOOK.unlink()
    else:
        raw = {**json.loads(BOOK.read_text()), **({damage: "other"} if damage != "text" else {})}
        fsio.replace(BOOK, json.dumps(raw).encode() if damage != "text" else b"{")

    assert mine not in gpus.look().claims


def test_a_held_book_is_given_up(living: str) -> None:
    lock = fsio.DISK.lock(BOOK.with_name("gpus.lock"))
    while lock is None:
        lock = fsio.DISK.lock(BOOK.with_name("gpus.lock"))

    with pytest.raises(BlockingIOError, match="has been locked for 0 s"):
        gpus.change(lambda book: book, within_s=0.0)
    lock.close()


def test_a_run_whose_shim_lives_is_alive(tmp_path: Path) -> None:
    run, mine = runs.RunDir(tmp_path / "runs" / "digits"), uuid()
    run.root.mkdir(parents=True)
    me = process.identity(os.getpid())
    assert me is not None
    runs.make_runtime(run)
    shim = {"pid": me.pid, "start_ticks": me.start_ticks}
    (run.runtime / "processes.json").write_text(json.dumps({"shim": shim, "supervisor": None}))

    gpus.change(lambda book: book.given(str(run.root), [mine]))

    assert mine in gpus.look().claims
    (run.runtime / "processes.json").unlink()
    assert mine not in gpus.look().claims
