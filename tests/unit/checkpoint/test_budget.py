"""How many slots there is memory for, and what is said when it is not enough for all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint import budget
from holdfast.checkpoint.budget import Limit
from holdfast.checkpoint.room import Room, limits
from holdfast.checkpoint.slots import HEADER_BYTES, Slot

GIB = 1 << 30


def box(available_bytes: int, total_bytes: int = 8 * GIB, name: str = "cgroup /box") -> Limit:
    return Limit(name=name, total_bytes=total_bytes, available_bytes=available_bytes)


@pytest.mark.parametrize(("state_gib", "expected"), [(1, 3), (2, 3), (3, 2), (4, 1), (7, 1), (8, 0)])
def test_slots_are_counted_in_what_stays_above_the_reserve(state_gib: int, expected: int) -> None:
    assert budget.slots_for(state_gib * GIB, [box(15 * GIB // 2)]) == expected


def test_slots_that_have_their_memory_already_are_not_asked_for_again() -> None:
    assert budget.slots_for(2 * GIB, [box(GIB)], grown=2) == 2


def test_the_tightest_limit_decides_and_is_named() -> None:
    roomy, tight = box(64 * GIB, 128 * GIB, "this machine"), box(GIB, name="cgroup /docker/abc")

    assert budget.tightest([roomy, tight]) is tight
    assert budget.refusal(GIB, [roomy, tight]) == (
        "a slot needs 1.0 GiB more, and cgroup /docker/abc has 1.0 GiB of 8.0 GiB left, of which 512.0 MiB stay free"
    )


def test_a_file_system_keeps_nothing_back() -> None:
    folder = Limit(name="memory_dir", total_bytes=GIB, available_bytes=GIB // 2, reserve=False)

    assert budget.slots_for(GIB // 4, [folder]) == 2
    assert budget.refusal(GIB // 2, [folder]) == ""


@given(st.integers(1, 1 << 45), st.integers(0, 1 << 45), st.integers(0, 1 << 45))
def test_what_is_promised_never_touches_the_reserve(state: int, available: int, total: int) -> None:
    limit = box(available, total)

    count = budget.slots_for(state, [limit])

    assert 0 <= count <= 3
    assert count * state <= max(0, available - budget.LEAST_RESERVE_BYTES)
    assert bool(budget.reduced(count, state, [limit])) == (count < 3)


def test_words_say_which_tier_there_is() -> None:
    assert "while one is written to disk, no copy is made in memory" in budget.reduced(2, GIB, [box(GIB)])
    assert "continues from disk" in budget.reduced(1, GIB, [box(GIB)])


def cgroups(root: Path, files: dict[str, str], membership: str) -> Path:
    """A /proc and /sys of our own."""
    files = {
        "proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n",
        "proc/self/cgroup": membership,
    } | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def measured(root: Path) -> dict[str, int]:
    descriptor = os.memfd_create("slot")
    try:
        return {
            limit.name.removeprefix(f"cgroup {root}/"): limit.available_bytes for limit in limits(descriptor, root=root)
        }
    finally:
        os.close(descriptor)


def test_a_container_of_version_2_counts_file_pages_as_free_and_every_level(tmp_path: Path) -> None:
    here, above = "sys/fs/cgroup/pod/box", "sys/fs/cgroup/pod"
    root = cgroups(
        tmp_path,
        {
            f"{here}/memory.max": "1000000",
            f"{here}/memory.high": "max",
            f"{here}/memory.current": "900000",
            f"{here}/memory.stat": "anon 1\ninactive_file 300000\n",
            f"{above}/memory.max": "2000000",
            f"{above}/memory.current": "1900000",
            f"{above}/memory.stat": "inactive_file 0\n",
        },
        "0::/pod/box\n",
    )

    assert measured(root) == {"this machine": 8 << 30, here: 400_000, above: 100_000}


def test_a_container_of_version_1_seen_from_inside(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/memory"
    root = cgroups(
        tmp_path,
        {
            f"{top}/memory.limit_in_bytes": "500000",
            f"{top}/memory.usage_in_bytes": "100000",
            f"{top}/memory.stat": "total_inactive_file 50000\n",
        },
        "4:memory:/docker/abc\n3:cpu:/other\n",
    )

    assert measured(root) == {"this machine": 8 << 30, top: 450_000}


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/memory"
    files = {f"{top}/memory.limit_in_bytes": "9223372036854771712", f"{top}/memory.usage_in_bytes": "1"}

    assert measured(cgroups(tmp_path, {**files, f"{top}/memory.stat": ""}, "4:memory:/\n")) == {"this machine": 8 << 30}


def test_a_slot_does_not_grow_into_what_is_not_there(tmp_path: Path) -> None:
    descriptor = os.memfd_create("slot")
    slot = Slot(descriptor, Room(tmp_path / "lock").growth)

    with pytest.raises(OSError, match=r"a slot needs 1\.0 PiB more, and .* left") as caught:
        slot.reserve(1 << 50)
    slot.reserve(1 << 20)

    assert caught.value.errno == 12
    assert HEADER_BYTES < len(slot.view) == 1 << 20
    slot.close()
    os.close(descriptor)
