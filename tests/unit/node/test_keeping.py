"""Copies in memory are there for as long as one process of the run has them, or has been sent them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import process
from holdfast.checkpoint.slots import SlotSet, State
from holdfast.node.shimlink import ShimLink, Slots
from holdfast.node.slotmemory import living_memory
from holdfast.node.slotsets import SlotSets, memory_of
from holdfast.runs import RunDir
from tests import noderuns
from tests.slotparts import seal
from tests.waiting import until

pytestmark = pytest.mark.e2e
OTHERS = ("supervisor", "archiver")
MARK_AT = 3000  # of the header page, where nobody writes before a save fails


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    """A run whose supervisor waits for a secret that never comes: we are its only rank."""
    with noderuns.home(tmp_path) as base:
        yield noderuns.begin(base, noderuns.shell("true"), secret_names=("NEVER",))


@contextlib.contextmanager
def connected(run: RunDir) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(60)
        link.connect(str(run.runtime / "shim.sock"))
        yield link


def ask(run: RunDir, fds: list[int] | None = None, **message: Any) -> list[int]:
    return process.request(run.runtime / "shim.sock", message, fds=fds or [], timeout_s=60)[1]


def slots(run: RunDir, says: bytes = b"", **more: Any) -> list[int]:
    """Rank 0's descriptors from the shim, with something to know its memory by."""
    fds = ask(run, op="slots", rank=0, **more)
    if says:
        os.pwrite(fds[2], says, MARK_AT)
    return fds


def close(fds: list[int]) -> None:
    for descriptor in fds:
        os.close(descriptor)


def says(fds: list[int]) -> bytes:
    """What we wrote into that memory; the descriptors are closed."""
    told = os.pread(fds[2], 100, MARK_AT).rstrip(b"\0")
    close(fds)
    return told


def holds(who: process.Identity, rank: int) -> bool:
    targets = []
    for link in Path(f"/proc/{who.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            targets.append(str(link.readlink()))
    return any(target.startswith("/memfd:holdfast-") and target.split("-")[2] == str(rank) for target in targets)


def end(*who: process.Identity) -> None:
    for gone in [noderuns.kill(one) for one in who]:
        until(gone)


def stop(who: process.Identity) -> None:
    process.send_signal(who, signal.SIGSTOP)
    until(lambda: (process.stat_fields(who.pid) or "?")[0] == "T")


def stop_both(run: RunDir) -> dict[str, process.Identity]:
    """Supervisor and archiver, stopped after they have begun to keep what the shim gives them."""
    close(ask(run, op="slots", rank=5))
    found = {name: noderuns.role(run, name) for name in OTHERS}
    for who in found.values():
        until(lambda who=who: holds(who, 5))  # type: ignore[misc]
        stop(who)
    return found


def test_the_next_shim_finds_what_a_rank_alone_still_holds(run: RunDir) -> None:
    mine = slots(run, b"a copy")
    shim = noderuns.role(run, "shim")
    stop(shim)
    end(*(noderuns.role(run, name) for name in OTHERS))
    end(shim)

    process.start_shim(run)

    assert says(slots(run)) == b"a copy"
    close(mine)


@pytest.mark.parametrize("name", OTHERS)
def test_a_rank_waits_for_what_lies_in_the_socket_of_one_that_lived_before(run: RunDir, name: str) -> None:
    stopped = stop_both(run)
    close(slots(run, b"a copy"))  # the shim has sent it to both
    end(noderuns.role(run, "shim"))
    process.start_shim(run)
    assert 0 not in {rank for rank, fds in living_memory(f"holdfast-{run.runtime.name}").items() if not close(fds)}

    with connected(run) as link:
        process.send(link, {"op": "slots", "rank": 0})
        process.send_signal(stopped[name], signal.SIGCONT)
        _, fds = process.receive(link)

    assert says(fds) == b"a copy"


@pytest.fixture
def two_sets(run: RunDir) -> Iterator[tuple[list[int], list[int]]]:
    """Held by us alone while a shim starts: an older set of rank 0 and a newer one."""
    older, newer = slots(run, b"older"), slots(run, b"newer", files=False)
    stopped = stop_both(run)
    end(noderuns.role(run, "shim"), *stopped.values())
    process.start_shim(run)
    yield older, newer
    close([*older, *newer])


def test_the_newer_set_is_found_and_an_offer_changes_no_more_than_its_doorbells(
    run: RunDir, two_sets: tuple[list[int], list[int]]
) -> None:
    older, newer = two_sets
    ask(run, older, op="offer", role="archiver", rank=0)
    ask(run, newer, op="offer", role="archiver", rank=0)
    first = slots(run)
    ask(run, [*older[:2], *newer[2:]], op="offer", role="supervisor", rank=0)  # the rank has the others by now
    second = slots(run)

    for fds in (first, second):
        os.eventfd_write(fds[0], 3)
        assert os.eventfd_read(newer[0]) == 3
        assert os.fstat(fds[2]).st_ino == os.fstat(newer[2]).st_ino
        close(fds)


def test_a_rank_knows_best_which_set_it_uses(run: RunDir, two_sets: tuple[list[int], list[int]]) -> None:
    ask(run, two_sets[0], op="offer", rank=0)

    assert says(slots(run)) == b"older"


def test_an_offer_counts_though_its_sender_died_without_reading(run: RunDir) -> None:
    mine = [os.eventfd(0), os.eventfd(0), *(os.memfd_create("mine") for _ in range(3))]
    os.pwrite(mine[2], b"a copy", MARK_AT)
    shim = noderuns.role(run, "shim")
    with connected(run) as link:
        process.send(link, {"op": "nonsense"})
        assert select.select([link], [], [], 60)[0]  # the answer is here, and stays unread
        stop(shim)
        process.send(link, {"op": "offer", "rank": 0}, mine)
    close(mine)

    process.send_signal(shim, signal.SIGCONT)

    assert says(slots(run)) == b"a copy"


def test_the_supervisor_takes_what_a_shim_sent_before_it_died(tmp_path: Path) -> None:
    path = tmp_path / "shim.sock"
    kept: Slots = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        shim = threading.Thread(target=_greet_push_and_die, args=(listener,))
        shim.start()
        link = ShimLink(path, kept)
        shim.join()

    with pytest.raises(OSError):
        link.ask({"op": "ack", "exit": 1})
    link.close()

    assert says(kept.pop(0)) == b"a copy"


def _greet_push_and_die(listener: socket.socket) -> None:
    link, _ = listener.accept()
    process.receive(link)
    process.send(link, {"ok": True})
    fds = [os.memfd_create("copy") for _ in range(5)]
    os.pwrite(fds[2], b"a copy", MARK_AT)
    process.send(link, {"event": "slots", "rank": 0}, fds)
    close(fds)
    link.close()


def test_what_the_dead_had_sent_comes_after_the_reset() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process.send(ours, {"never": "read"})
    process.send(theirs, {"said": "before"})
    theirs.close()

    assert process.receive(ours)[0] == {"said": "before"}
    with pytest.raises(ConnectionResetError):
        process.receive(ours)
    ours.close()


def test_the_set_given_last_is_the_one_in_use() -> None:
    sets = SlotSets(lambda *_: contextlib.nullcontext(), after=State.HELD)
    first, second = _memory(), _memory()
    memory = memory_of(first)
    again = SlotSet.of(0, [os.dup(descriptor) for descriptor in first.fds()])
    for given in (first, second):
        sets.add(given)
    seal(sets.every()[0].slots[0], seed=1, sequence=1, step=1)

    sets.add(again)
    sets.drop_unused()

    assert [one.memory for one in sets.every()] == [memory]
    sets.every()[0].close()


def _memory() -> SlotSet:
    bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
    return SlotSet.of(0, [*bells, *(os.memfd_create("test") for _ in range(3))])
