"""The node's end of a push: whole or not at all, whatever is cut, damaged, full, old or at the same time."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from holdfast.bundle import push, unpack
from tests.labs.mounts import apart
from tests.needs import need
from tests.waiting import until

TEXT = Path(unpack.__file__).read_bytes()


def wheel(package: str, source: str = "", more: dict[str, str] | None = None) -> tuple[str, bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{package}/__init__.py", source)
        for name, text in (more or {}).items():
            archive.writestr(name, text)
    return f"{package}-1-py3-none-any.whl", out.getvalue()


def pack(
    folder: Path, wheels: list[tuple[str, bytes]], *, name: str = "b" * 16, collect: bool = False, kept: int = 0
) -> bytes:
    """The first `kept` wheels are listed and not sent."""
    listed = [(each, len(data), hashlib.sha256(data).hexdigest()) for each, data in wheels]
    order = {"mark": "MARK", "hash": name, "wheels": listed, "folder": str(folder)}
    head = {
        **order,
        "collect": collect,
        "runs": str(folder.parent / "runs"),
        "kept": [each[2] for each in listed[:kept]],
    }
    return TEXT + json.dumps(head).encode() + b"\n" + b"".join(data for _, data in wheels[kept:])


ARGV = [sys.executable, "-E", "-s", "-c", f"import sys; exec(sys.stdin.buffer.read({len(TEXT)}))"]


def send(data: bytes, *before: str) -> dict[str, Any]:
    done = subprocess.run([*before, *ARGV], input=data, capture_output=True, timeout=60)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    last = done.stdout.decode().splitlines()[-1]
    assert last.startswith("MARK ")
    told: dict[str, Any] = json.loads(last[5:])
    assert done.returncode == (0 if told["ok"] else 1)
    return told


def names(folder: Path) -> list[str]:
    """Of bundles and what is to become one."""
    return sorted(path.name for path in folder.iterdir() if path.name not in (unpack.LAUNCHER, unpack.WHEELS))


def test_wheels_become_a_folder_that_python_can_import_from(tmp_path: Path) -> None:
    more = {"one-1.data/purelib/beside.py": "", "one-1.data/scripts/tool": "", "one-1.dist-info/METADATA": "Name: one"}
    folder = tmp_path / "bundles"

    assert send(pack(folder, [wheel("one", more=more), wheel("two", "import one, beside")])) == {"ok": True}

    bundle = folder / "bbbbbbbbbbbbbbbb"
    found = {path.name for path in bundle.iterdir()} - {"__pycache__"}
    assert found == {"bundle.json", "one", "two", "beside.py", "one-1.dist-info"}
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9999])
def test_a_push_that_is_cut_leaves_nothing(tmp_path: Path, share: float) -> None:
    folder = tmp_path / "bundles"
    data = pack(folder, [wheel("one", "#" * 100_000), wheel("two", "#" * 100_000)])
    wheels_at = len(data) - 200_000

    told = send(data[: wheels_at + int(200_000 * share)])

    assert told["error"].startswith("the push was cut in the middle of ")
    assert names(folder) == []


def test_what_came_whole_before_a_cut_is_not_sent_again(tmp_path: Path) -> None:
    folder, wheels = tmp_path / "bundles", [wheel("one", "#" * 100_000), wheel("two", "#" * 100_000)]
    send(pack(folder, wheels)[:-1])

    assert len(list((folder / "wheels").iterdir())) == 1
    assert send(pack(folder, wheels, kept=1)) == {"ok": True}
    assert names(folder) == ["b" * 16]


def test_a_kept_wheel_that_is_damaged_is_refused_and_gone(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    send(pack(folder, [wheel("one")], name="first"))
    (kept,) = (folder / "wheels").iterdir()
    kept.write_bytes(b"?")

    told = send(pack(folder, [wheel("one")], kept=1))

    assert told["error"] == "one-1-py3-none-any.whl is not kept there any more"
    assert (names(folder), list((folder / "wheels").iterdir())) == (["first"], [])


def test_bytes_that_changed_on_the_way_are_refused(tmp_path: Path) -> None:
    data = pack(tmp_path / "bundles", [wheel("one")])

    told = send(data[:-1] + bytes([data[-1] ^ 1]))

    assert told["error"] == "one-1-py3-none-any.whl did not arrive as it was sent"
    assert names(tmp_path / "bundles") == []


def test_what_does_not_load_there_is_never_used(tmp_path: Path) -> None:
    told = send(pack(tmp_path / "bundles", [wheel("one", "import nothing_like_that")]))

    assert "does not load in " in told["error"] and "nothing_like_that" in told["error"]
    assert names(tmp_path / "bundles") == []


def test_two_at_once_make_one_bundle(tmp_path: Path) -> None:
    folder, go = tmp_path / "bundles", tmp_path / "go"
    data = pack(folder, [wheel("one", f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)")])
    with ThreadPoolExecutor(2) as pool:
        told = [pool.submit(send, data) for _ in range(2)]
        until(lambda: len(list(folder.glob(".*.part/one"))) == 2)
        go.touch()

        assert [one.result() for one in told] == [{"ok": True}] * 2
    assert names(folder) == ["b" * 16]


def test_half_a_bundle_of_somebody_who_died_is_swept_and_one_being_made_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    folder.mkdir(mode=0o700)
    for name in (".dead.part", ".busy.part", ".young.part"):
        (folder / name).mkdir()
    for name in (".dead.part", ".busy.part"):
        os.utime(folder / name, (1, 1))
    held = unpack.hold(folder / ".busy.part")
    assert held is not None

    send(pack(folder, [wheel("one")]))

    os.close(held)
    assert names(folder) == [".busy.part", ".young.part", "b" * 16]


def test_a_folder_without_its_contents_was_never_finished_and_is_replaced(tmp_path: Path) -> None:
    bundle = tmp_path / "bundles" / ("b" * 16)
    (bundle / "one").mkdir(parents=True)
    bundle.parent.chmod(0o700)

    assert send(pack(bundle.parent, [wheel("one")])) == {"ok": True}
    assert (bundle / "one" / "__init__.py").exists()


def test_old_bundles_go_unless_a_process_or_a_run_needs_them(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    for age, name in enumerate(("newest", "second", "spare", "running", "linked")):
        send(pack(folder, [wheel("holdfast", f"# {name}")], name=name))
        os.utime(folder / name / "bundle.json", (time.time() - 100 * age - 100,) * 2)
    for kept in (folder / "wheels").iterdir():
        os.utime(kept, (1, 1))
    link = tmp_path / "runs" / "digits" / "lib" / "holdfast"
    link.parent.mkdir(parents=True)
    link.symlink_to(folder / "linked" / "holdfast")
    environ = {**os.environ, "PYTHONPATH": str(folder / "running")}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, env=environ) as user:
        send(pack(folder, [wheel("holdfast")], name="current", collect=True))
        assert user.stdin is not None
        user.stdin.close()

    assert names(folder) == ["current", "linked", "newest", "running"]
    assert len(list((folder / "wheels").iterdir())) == 4


def test_pythons_that_were_brought_go_as_bundles_do(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    for age, name in enumerate(("newest", "newer", "launching", "running", "old")):
        (folder / f"python-{name}").mkdir(parents=True, mode=0o700)
        (folder / f"python-{name}" / "python.txt").touch()
        os.utime(folder / f"python-{name}" / "python.txt", (time.time() - 100 * age,) * 2)
    (folder / "holdfast").write_text(f"exec {folder}/python-launching/bin/python3")
    runs = folder / "python-running" / "runs"
    shutil.copy("/bin/cat", runs)
    with subprocess.Popen([runs], stdin=subprocess.PIPE) as user:
        unpack.collect(folder, "none", tmp_path / "runs")
        assert user.stdin is not None
        user.stdin.close()

    assert names(folder) == ["python-launching", "python-newer", "python-newest", "python-running"]


def test_the_bundle_that_was_pushed_last_can_be_started_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my bundles"
    for name in ("first", "second"):
        main = {"holdfast/__main__.py": f"import sys; print({name!r}, *sys.argv[1:])"}
        send(pack(folder, [wheel("holdfast", more=main)], name=name, collect=True))
    for age, name in enumerate(("third", "fourth")):  # of other laptops, used since
        (folder / name).mkdir()
        (folder / name / "bundle.json").write_text('{"wheels": []}')
        os.utime(folder / name / "bundle.json", (time.time() + 100 + age,) * 2)
    unpack.collect(folder, "none", tmp_path / "runs")

    done = subprocess.run([folder / "holdfast", "ps", "a b"], capture_output=True, text=True)

    assert done.stdout == "second ps a b\n", done.stderr
    assert names(folder) == ["fourth", "second", "third"]


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    folder.mkdir()
    folder.chmod(0o777)

    assert "can be written by others" in send(pack(folder, [wheel("one")]))["error"]
    assert names(folder) == []


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "needs root to mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=300k tmpfs {disk} && "$@"; status=$?; ls -A {disk}/bundles >&2; exit $status'
    data = pack(disk / "bundles", [wheel("one", "#" * 400_000)])

    done = subprocess.run([*apart(), "sh", "-c", script, "sh", *ARGV], input=data, capture_output=True)

    told = json.loads(done.stdout.decode().splitlines()[-1].removeprefix("MARK "))
    assert told["error"] == f"{disk}/bundles cannot be written: No space left on device"
    assert "HOLDFAST_HOME" in told["hint"]
    assert done.stderr == b"wheels\n"


def test_python_3_6_reads_it_and_is_told_what_is_needed() -> None:
    ast.parse(TEXT, feature_version=(3, 6))

    with pytest.raises(unpack.Refused, match=r"its Python 3\.6 is too old, 3\.10 is needed"):
        unpack.check((3, 6))


def test_the_order_has_what_the_unpacker_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.bundle.closure import Bundle

    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    (tmp_path / "bundles").mkdir(mode=0o700)
    made = Bundle(wheel("one"), ())
    order = push.Order(folder=str(tmp_path / "there"), runs=str(tmp_path / "runs"))
    with push._pack(made, order, "MARK") as file:
        assert send(file.read()) == {"ok": True}

    assert names(tmp_path / "there") == [made.hash]
