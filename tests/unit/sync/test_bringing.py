"""What is brought, what is kept, what is removed: two folders, both ends real, pipes in between."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError
from holdfast.sync import known
from holdfast.sync.known import Hashes, place_of
from tests.unit.sync.ends import held, synced, tree


def why(done_lines: list[object], what: str) -> dict[str, str]:
    return {line.path: line.why for line in done_lines if line.what == what}  # type: ignore[attr-defined]


def test_a_folder_arrives_as_it_is_and_nothing_is_sent_twice(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", a="one", pkg__model="two", run="three", empty="")
    (source / "run").chmod(0o755)
    (source / "run").touch()
    os.utime(source / "a", ns=(1, 1_234_567_890_123_456_789))
    (source / "pkg" / "up").symlink_to("../a")
    (source / "nothing").mkdir()

    first = synced(source, tmp_path / "t").whole()
    again = synced(source, tmp_path / "t").whole()

    assert held(tmp_path / "t") == held(source)
    assert sorted(first.sent.paths("brought")) == ["a", "empty", "pkg/model", "pkg/up", "run"]
    assert (again.sent.lines, again.sent.moved_bytes) == ([], 0)
    assert again.bytes_back < 30  # greeting apart, only that it is done


def test_what_ignore_files_leave_out_is_not_brought(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", a="a", x__b="b", c_log="c")
    tree(source, **{".gitignore": "*_log\n", ".holdfastignore": "x/\n", ".git__config": "c"})

    synced(source, tmp_path / "t").whole()

    assert sorted(held(tmp_path / "t")) == [".gitignore", ".holdfastignore", "a"]


def test_a_change_is_brought_and_a_touch_brings_no_bytes(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", a="one", b="two")
    synced(source, tmp_path / "t").whole()
    (source / "a").write_text("other")
    (source / "b").chmod(0o700)
    os.utime(source / "b", ns=(5, 5))

    done = synced(source, tmp_path / "t").whole()

    assert held(tmp_path / "t") == held(source)
    assert (done.sent.paths("brought"), done.sent.moved_bytes) == (["a"], 5)


def test_what_the_run_wrote_is_kept_and_told(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "s", a="one", b="two"), tree(tmp_path / "t", b="mine", log="mine")
    first = synced(source, target).whole()
    (target / "a").write_text("theirs")
    (source / "a").write_text("ours")

    second = synced(source, target).whole()

    assert why(first.sent.lines, "kept") == {"b": "it was there before, and is another"}
    assert why(second.sent.lines, "kept")["a"] == "it was changed there"
    assert [(target / name).read_text() for name in ("a", "b", "log")] == ["theirs", "mine", "mine"]

    synced(source, target, overwrite=True).whole()
    assert [(target / name).read_text() for name in ("a", "b", "log")] == ["ours", "two", "mine"]


def test_a_file_that_was_the_same_before_may_be_changed_but_not_deleted(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "s", a="one", b="one"), tree(tmp_path / "t", a="one", b="one")
    synced(source, target).whole()
    (source / "a").write_text("other")
    (source / "b").unlink()

    synced(source, target, delete=True).whole()

    assert [(target / name).read_text() for name in ("a", "b")] == ["other", "one"]


def test_only_what_was_brought_and_is_unchanged_is_deleted(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", gone__a="a", gone__b="b", mine__a="a", ignored="i", stays="s")
    target = tmp_path / "t"
    synced(source, target).whole()
    tree(target, gone__b="changed", mine__run="r", stays_too="s")
    for path in ("gone/a", "gone/b", "mine/a"):
        (source / path).unlink()
    (source / "gone").rmdir()
    (source / "mine").rmdir()
    (source / ".gitignore").write_text("ignored\n")

    quiet = synced(source, target).whole()
    done = synced(source, target, delete=True).whole()

    assert (quiet.sent.paths("deleted"), quiet.sent.paths("kept")) == ([], [])
    assert done.sent.paths("deleted") == ["mine/a", "gone/a"]
    assert list(why(done.sent.lines, "kept")) == ["gone/b"]
    assert {"gone", "gone/b", "mine", "mine/run", "ignored", "stays", "stays_too"} <= set(held(target))
    assert "gone/a" not in held(target)


def test_another_laptop_deletes_only_what_it_brought(tmp_path: Path) -> None:
    one, other = tree(tmp_path / "one", a="a"), tree(tmp_path / "other", b="b")
    synced(one, tmp_path / "t").whole()

    synced(other, tmp_path / "t", delete=True).whole()

    assert sorted(held(tmp_path / "t")) == ["a", "b"]


def test_kinds_may_change(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "s", a="a", b__x="x", c="c", d__y__z="z"), tmp_path / "t"
    synced(source, target).whole()
    (source / "a").unlink()
    tree(source, a__inner="i")
    (source / "b" / "x").unlink()
    (source / "b").rmdir()
    (source / "b").write_text("file now")
    (source / "c").unlink()
    (source / "c").symlink_to("b")

    careful = synced(source, target).whole()
    done = synced(source, target, delete=True).whole()

    assert why(careful.sent.lines, "kept") == {"b": "a folder is there"}
    assert not done.sent.paths("kept")
    assert held(target) == held(source)


def test_a_folder_that_holds_more_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "s", b__x="x"), tmp_path / "t"
    synced(source, target).whole()
    (target / "b" / "result").write_text("r")
    (source / "b" / "x").unlink()
    (source / "b").rmdir()
    (source / "b").write_text("file now")

    done = synced(source, target, delete=True, overwrite=True).whole()

    assert why(done.sent.lines, "kept") == {"b": "a folder is there that holds more than was brought"}
    assert (target / "b" / "result").read_text() == "r"


def test_a_dry_run_tells_the_same_and_does_nothing(tmp_path: Path) -> None:
    source, target = tree(tmp_path / "s", a="a", old="o"), tmp_path / "t"
    foretold = synced(source, target, dry_run=True).whole()
    assert (foretold.sent.paths("brought"), target.exists()) == (["a", "old"], False)
    synced(source, target).whole()
    tree(source, b="b").joinpath("old").unlink()
    before = held(target)

    foretold = synced(source, target, dry_run=True, delete=True).whole()

    assert held(target) == before
    told = synced(source, target, delete=True).whole()
    assert sorted(map(str, foretold.sent.lines)) == sorted(map(str, told.sent.lines))
    assert told.sent.paths("deleted") == ["old"]


def test_links_that_lead_out_are_told_and_links_in_a_loop_are_links(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", sub__a="a")
    outside = {"abs": "/etc/passwd", "up": "../x", "sub/out": "../../x", "sly": "sub/../../x"}
    inside = {"loop": "loop", "one": "two", "two": "one", "self": ".", "sub/back": "../sub", "gone": "nowhere"}
    for path, text in (outside | inside).items():
        (source / path).symlink_to(text)

    done = synced(source, tmp_path / "t").whole()

    assert set(done.sent.paths("skipped")) == set(outside)
    assert {path: held(tmp_path / "t")[path] for path in inside} == inside


def test_strange_names_arrive(tmp_path: Path) -> None:
    names = [b"new\nline", b"\xff\xfe", "naïve-日本".encode(), b"-rf", b" ", b"a\\b", b"\x1b[31m", "e\u0301".encode()]
    source = tree(tmp_path / "s")
    for name in names:
        (source / os.fsdecode(name)).write_bytes(name)

    synced(source, tmp_path / "t").whole()

    assert sorted(os.fsencode(path.name) for path in (tmp_path / "t").iterdir()) == sorted(names)
    assert held(tmp_path / "t") == held(source)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", a="a")
    os.mkfifo(source / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(source / "socket"))
        done = synced(source, tmp_path / "t").whole()

    assert why(done.sent.lines, "skipped") == dict.fromkeys(("pipe", "socket"), "it is neither file, folder nor link")


def test_a_sparse_file_stays_one(tmp_path: Path) -> None:
    source = tree(tmp_path / "s")
    with (source / "holes").open("wb") as file:
        file.write(b"begin")
        file.seek(64 << 20)
        file.write(b"end")

    done = synced(source, tmp_path / "t").whole()

    found = (tmp_path / "t" / "holes").stat()
    assert held(tmp_path / "t") == held(source)
    assert found.st_blocks * 512 < 2 << 20
    assert done.bytes_there < 2 << 20


@pytest.mark.parametrize("count", [600, pytest.param(3000, marks=pytest.mark.soak)])
def test_many_files(tmp_path: Path, count: int) -> None:
    source = tree(tmp_path / "s", **{f"d{n % 60}__f{n}": f"{n}" * 50 for n in range(count)})

    synced(source, tmp_path / "t").whole()
    (source / "d7" / "f7").write_text("changed")
    done = synced(source, tmp_path / "t").whole()

    assert held(tmp_path / "t") == held(source)
    assert (done.sent.paths("brought"), done.sent.moved_bytes) == (["d7/f7"], 7)


def test_a_missing_folder_is_told_on_both_ends(tmp_path: Path) -> None:
    done = synced(tmp_path / "nowhere", tmp_path / "t")

    assert str(done.sender_error) == f"there is no folder {tmp_path}/nowhere"
    assert str(done.receiver_error) == str(done.sender_error)


def test_a_target_that_is_a_file_is_told_on_both_ends(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("file")

    done = synced(tree(tmp_path / "s", a="a"), tmp_path / "t")

    assert "File exists" in str(done.sender_error)
    with pytest.raises(HoldfastError, match="File exists"):
        done.whole()


def test_nothing_is_written_through_a_link_that_somebody_put_there(tmp_path: Path) -> None:
    source, outside = tree(tmp_path / "s", data__x="x", deep__er__y="y"), tree(tmp_path / "outside")
    target = tree(tmp_path / "t")
    (target / "data").symlink_to(outside)
    tree(target / "deep")
    (target / "deep" / "er").symlink_to("../../outside")

    done = synced(source, target).whole()

    assert list(outside.iterdir()) == []
    assert set(why(done.sent.lines, "kept")) >= {"data", "deep/er"}


def test_one_sync_at_a_time_writes_to_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tree(tmp_path / "s", a="a"), tmp_path / "t"
    monkeypatch.setattr(known, "LOCK_S", 0.2)
    with known.locked(place_of(target), target):
        done = synced(source, target)
    after = synced(source, target).whole()

    assert str(done.sender_error) == f"{target} is in use by process {os.getpid()}"
    assert (done.sender_error.exit_code if done.sender_error else 0, after.sent.paths("brought")) == (11, ["a"])


def test_a_hash_is_believed_only_when_the_file_has_rested(tmp_path: Path, own_home: Path) -> None:
    source = tree(tmp_path / "s", fresh="a", old="b")
    place = place_of(source)
    os.utime(source / "old", ns=(1, 1))  # its ctime is of now all the same

    synced(source, tmp_path / "t").whole()

    assert Hashes(place)._known == {}


def test_the_same_size_at_the_same_time_is_seen(tmp_path: Path) -> None:
    source = tree(tmp_path / "s", a="one")
    for text in ("two", "six", "ten"):
        synced(source, tmp_path / "t").whole()
        (source / "a").write_text(text)
        os.utime(source / "a", ns=(7, 7))

    synced(source, tmp_path / "t").whole()

    assert (tmp_path / "t" / "a").read_text() == "ten"
