"""The connection ends at any byte: nothing half is ever seen, nothing is lost, and the next sync goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.sync import ends
from holdfast.sync.frames import Cut, Frames
from holdfast.sync.incoming import LARGE_BYTES
from holdfast.workspace.ignore import STAGING
from tests.children import ended
from tests.labs.mounts import apart
from tests.needs import need
from tests.unit.sync.ends import held, synced, tree
from tests.waiting import until

_MIB = 1 << 20


def small(root: Path) -> Path:
    source = tree(root, a="one" * 50, b__c="two" * 90, b__d="three")
    (source / "link").symlink_to("b/c")
    return source


@pytest.mark.parametrize("way", ["there", "back"])
@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.soak)])
def test_cut_at_any_byte(way: str, step: int, tmp_path: Path) -> None:
    """At every thirteenth in the suite, at every one in make soak."""
    source = small(tmp_path / "s")
    whole = synced(source, tmp_path / "whole").whole()
    for at in range(0, whole.bytes_there if way == "there" else whole.bytes_back, step):
        target = tmp_path / f"t{at}"
        done = synced(source, target, **{f"cut_{way}": at})
        assert isinstance(done.receiver_error if way == "there" else done.sender_error, Cut)
        found = held(target) if target.exists() else {}
        assert {path: what for path, what in found.items() if STAGING not in path}.items() <= held(source).items()

        again = synced(source, target).whole()

        assert held(target) == held(source)
        assert not again.sent.paths("kept")


def test_after_a_cut_a_changed_file_is_no_conflict(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "s", **{f"f{n}": "x" * 300_000 for n in range(8)}), tmp_path / "t"
    (source / "f1").write_text("first")
    synced(source, target, cut_there=1_500_000)
    for n in range(8):
        (source / f"f{n}").write_text(f"second {n}")

    done = synced(source, target).whole()

    assert not done.sent.paths("kept")
    assert held(target) == held(source)


def test_a_large_file_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    content = os.urandom(LARGE_BYTES + 5 * _MIB)
    source, target = tree(tmp_path / "s", large=content), tmp_path / "t"

    sent = [synced(source, target, cut_there=4 * _MIB).bytes_there for _ in range(3)]
    assert sorted(held(target)) == [STAGING, *(path for path in held(target) if path.startswith(STAGING + "/"))]
    done = synced(source, target).whole()

    assert (target / "large").read_bytes() == content
    assert sum(sent) + done.bytes_there < len(content) + 2 * _MIB
    assert not (target / STAGING).exists()


def test_a_damaged_half_is_brought_again(tmp_path: Path) -> None:
    content = os.urandom(LARGE_BYTES)
    source, target = tree(tmp_path / "s", large=content), tmp_path / "t"
    synced(source, target, cut_there=4 * _MIB)
    (half,) = (target / STAGING).iterdir()
    with half.open("r+b") as file:
        file.write(b"damage")

    synced(source, target).whole()

    assert (target / "large").read_bytes() == content


def test_a_half_that_has_become_longer_than_the_file_is_cut_to_it(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "s", large=os.urandom(LARGE_BYTES)), tmp_path / "t"
    synced(source, target, cut_there=2 * _MIB)
    (half,) = (target / STAGING).iterdir()
    half.write_bytes((source / "large").read_bytes() + b"more")

    synced(source, target).whole()

    assert held(target) == held(source)


def test_a_half_that_nobody_wants_any_more_goes(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "s", large=os.urandom(LARGE_BYTES)), tmp_path / "t"
    synced(source, target, cut_there=2 * _MIB)
    (source / "large").write_text("small now")

    synced(source, target).whole()

    assert held(target) == held(source)


def test_a_receiver_that_is_killed_leaves_nothing_half(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "s", **{f"f{n}": os.urandom(_MIB) for n in range(40)}), tmp_path / "t"
    child = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "node", "receive", str(target)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None

    def progress(done: int, total: int) -> None:
        if done > total // 2:
            until(lambda: len(list(target.glob("f*"))) > 3)
            child.send_signal(signal.SIGKILL)

    with ended(child), pytest.raises(Cut):
        frames = Frames(child.stdout.fileno(), child.stdin.fileno(), awaits=True)
        list(ends.send(source, frames, progress=progress))
    assert {path: what for path, what in held(target).items() if STAGING not in path}.items() <= held(source).items()
    for n in range(40):
        (source / f"f{n}").write_text("changed since")

    done = synced(source, target).whole()

    assert not done.sent.paths("kept")
    assert held(target) == held(source)


def test_a_file_that_is_written_to_arrives_as_it_is_in_the_end(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "s", a=os.urandom(3 * _MIB), b="b"), tmp_path / "t"
    there, back = os.pipe(), os.pipe()

    def progress(done: int, total: int) -> None:
        if done < total:
            (source / "a").write_bytes(b"changed" * 1000)  # after it was told of, before it is whole

    import threading

    taking = threading.Thread(target=lambda: list(ends.receive(target, Frames(there[0], back[1]), ends.Options())))
    taking.start()
    (outcome,) = ends.send(source, Frames(back[0], there[1]), progress=progress)
    taking.join(30)
    for descriptor in (*there, *back):
        os.close(descriptor)

    assert held(target) == held(source)
    assert (outcome.paths("changing"), outcome.paths("brought").count("a")) == ([], 1)


FULL = """
set -e
mount -t tmpfs -o size=6m tmpfs "$1"
shift
exec "$@"
"""


def test_a_full_disk_is_told_before_and_while_it_fills(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "mounts need root")
    big, many = (
        tree(tmp_path / "big", a=os.urandom(8 * _MIB)),
        tree(tmp_path / "many", **{f"f{n}": "x" for n in range(2000)}),
    )
    target = tree(tmp_path / "t")
    script = (
        "import sys; from pathlib import Path; from tests.unit.sync.ends import synced, held\n"
        "big, many, target = map(Path, sys.argv[1:])\n"
        "print(synced(big, target / 'x').sender_error)\n"
        "print(synced(many, target / 'x').sender_error)\n"
        "found = held(target / 'x')\n"
        "print(len(found) > 500, found.items() <= held(many).items())\n"
    )  # a file of one byte takes 4 KiB there, which nobody can know before
    argv = ["sh", "-c", FULL, "sh", str(target), sys.executable, "-c", script, str(big), str(many), str(target)]

    done = subprocess.run([*apart(), *argv], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=60)

    assert done.stdout.splitlines() == [
        f"8.0 MiB are to come, and {target}/x has 6.0 MiB free",
        f"the disk of {target}/x is full; what has arrived whole stays",
        "True True",
    ], done.stderr


def test_hashes_that_a_full_disk_does_not_keep_cost_nothing_but_time(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "mounts need root")
    source, home = tree(tmp_path / "s", a="one"), tree(tmp_path / "home")
    script = (
        "import os, sys; from pathlib import Path; from holdfast.sync import known; from tests.unit.sync import ends\n"
        "source, home, target = map(Path, sys.argv[1:])\n"
        "os.environ['HOLDFAST_HOME'], known.RECENT_NS = str(home), -(1 << 60)\n"
        "place = known.place_of(source)\n"
        "print(os.system(f'head -c 9M /dev/zero >{home}/all 2>/dev/null') != 0)\n"
        "hashes = known.Hashes(place)\n"
        "with known.Tree(source) as opened:\n"
        "    hashes.read(opened, 'a', os.stat(source / 'a'))\n"
        "hashes.save()\n"
        "print(sorted(os.listdir(place)), known.Hashes(place)._known)\n"
    )
    argv = ["sh", "-c", FULL, "sh", str(home), sys.executable, "-c", script, str(source), str(home), str(tmp_path)]

    done = subprocess.run([*apart(), *argv], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=60)

    assert done.stdout.splitlines() == ["True", "[] {}"], done.stderr
