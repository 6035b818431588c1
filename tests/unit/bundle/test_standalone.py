"""A node without a Python gets one: fetched by the real uv, sent through a real sshd where none is found."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast import bundle, process
from holdfast.bundle import places, probing, push, standalone
from holdfast.bundle.places import Platform
from holdfast.bundle.probing import Half, Unfit
from holdfast.bundle.standalone import Standalone
from holdfast.errors import HoldfastError, HostUnreachable
from holdfast.link.client import Up
from tests.labs import pythons
from tests.labs import sshd as lab
from tests.labs.links import master_of
from tests.labs.pythons import Shelf
from tests.needs import need
from tests.unit.bundle.loading import SPOILING, loads, spoil
from tests.waiting import until

pytestmark = pytest.mark.e2e
OLD = '#!/bin/sh\necho "3.8.10 cpython True"\n'
HELD = 1_000_000  # bytes of an archive after which SLOW waits
SLOW = f"#!/bin/sh\ndd bs=1000 count={HELD // 1000} iflag=fullblock 2>/dev/null\n{{}}\nexec /bin/cat\n"


@pytest.fixture(autouse=True)
def from_the_shelf(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in shelf.environ().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[lab.Sshd, Path]]:
    need(os.geteuid() == 0, "needs root to hide the Pythons there")
    with lab.person() as (user, home), pythons.bare(tmp_path_factory.mktemp("sshd"), user, home) as running:
        yield running, home


@pytest.fixture
def home(server: tuple[lab.Sshd, Path]) -> Iterator[Path]:
    """Of a person there, as it was before."""
    home = server[1]
    (home / "bin").mkdir()
    (home / ".bashrc").write_text(f"{SPOILING}export PATH=$HOME/bin:$PATH\n")
    spoil(home)
    yield home
    for name in ("bin", ".holdfast"):
        shutil.rmtree(home / name, ignore_errors=True)


@pytest.fixture
def up(server: tuple[lab.Sshd, Path], home: Path, laptop: Path) -> Iterator[Up]:
    with lab.master(server[0]) as path:
        yield Up("node", "0123456789ab", path, 0.0)


@pytest.fixture
def made(up: Up) -> Standalone:
    """What that node gets; here already."""
    there = probing.platform("node", probing.ask(up, within_s=30), pythons.MINOR)
    return standalone.cached(there) or standalone.fetched(there)


def bundles(home: Path) -> Path:
    return home / ".holdfast" / "bundles"


def give(up: Up, made: Standalone, home: Path, half: Half | None = None) -> list[tuple[int, int]]:
    """What was told of its progress."""
    sent: list[tuple[int, int]] = []
    push.push_python(up, made, str(bundles(home)), half, lambda *now: sent.append(now))
    return sent


def halves(up: Up) -> tuple[Half, ...]:
    return probing.ask(up, within_s=30).halves


def program(home: Path, name: str, text: str) -> None:
    path = home / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def arriving(home: Path) -> list[Path]:
    """Halves of which the first bytes have come, as a cat that is SLOW lets them."""
    archives = bundles(home).glob(".python-*.part/archive")
    return [archive.parent for archive in archives if archive.stat().st_size == HELD]


def test_a_node_without_a_python_gets_one_and_the_next_time_has_it(up: Up, home: Path) -> None:
    said: list[str] = []

    node = bundle.ensure(up, tell=said.append)

    loads(up, node)
    platform = node.platform
    made = standalone.cached(platform)
    assert made is not None
    assert node.python == f"{home}/.holdfast/bundles/{made.name}/bin/python3"
    told = [line for line in said if "has no Python" in line]
    assert told == [
        f"node has no Python 3.10 or newer: it gets one of its own ({made}, {made.size_bytes / 2**20:.1f} MiB)"
    ]
    kept = {made.name, node.bundle, places.LAUNCHER, "wheels"}
    assert {path.name for path in bundles(home).iterdir()} == kept
    said.clear()
    assert bundle.ensure(up, again=True, tell=said.append) == node
    assert said == []
    launched = subprocess.run([bundles(home) / places.LAUNCHER, "--version"], capture_output=True, text=True)
    assert launched.stdout.startswith("holdfast"), launched


@pytest.mark.usefixtures("home")
def test_a_python_that_is_too_old_is_left_where_it_is_and_ours_goes_where_files_can_be_run(up: Up, home: Path) -> None:
    program(home, "python3", OLD)
    elsewhere = Path(f"/var/tmp/holdfast-{home.stat().st_uid}")
    with (home / ".bashrc").open("a") as start:
        start.write("export HOLDFAST_HOME=$HOME/noexec\n")
    try:
        node = bundle.ensure(up)
        loads(up, node)
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)

    assert node.python.startswith(f"{elsewhere}/bundles/python-")
    assert node.home == f"{home}/noexec"
    assert (home / "bin" / "python3").read_text() == OLD


@pytest.mark.parametrize("dies", ["link", "shell"])
def test_what_had_come_before_a_cut_is_not_sent_again(
    server: tuple[lab.Sshd, Path], home: Path, up: Up, made: Standalone, dies: str
) -> None:
    go = home / "go"
    program(home, "cat", SLOW.format(f"until [ -e {go} ]; do sleep 0.01; done"))
    with lab.master(server[0]) as path, ThreadPoolExecutor(1) as pool:
        cut = pool.submit(give, Up("node", up.key, path, 0.0), made, home)
        (part,) = until(lambda: arriving(home))
        taker = process.identity(int(part.name.partition("@")[0].rpartition(".")[2]))
        assert taker is not None
        assert halves(up) == ()  # it has somebody
        if dies == "link":
            os.kill(master_of(path), signal.SIGKILL)
        else:
            process.send_signal(taker, signal.SIGKILL)
        with pytest.raises(HostUnreachable):
            cut.result(30)
    go.touch()
    until(lambda: not process.alive(taker))
    (home / "bin" / "cat").unlink()
    go.unlink()
    (half,) = until(lambda: halves(up))

    sent = give(up, made, home, half)

    assert HELD <= half.size_bytes < made.size_bytes
    assert sent[-1][1] <= made.size_bytes - half.size_bytes + (64 << 10)
    assert [path.name for path in bundles(home).iterdir()] == [made.name]


def test_a_python_that_is_damaged_on_the_way_is_refused_and_nothing_of_it_stays(
    up: Up, home: Path, made: Standalone
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    part = bundles(home) / f".{made.name}.{ended.pid}@{os.uname().nodename}.part"
    part.mkdir(mode=0o700)
    data = bytearray(made.path.read_bytes()[:5000])
    data[4000] ^= 1
    (part / "archive").write_bytes(data)
    for each in (part, part / "archive"):
        shutil.chown(each, home.stat().st_uid)
    (half,) = halves(up)

    with pytest.raises(Unfit, match="node: its Python did not arrive as it was sent, try again"):
        give(up, made, home, half)

    assert list(bundles(home).iterdir()) == []
    give(up, made, home, half)  # which is not there any more
    assert [path.name for path in bundles(home).iterdir()] == [made.name]


def test_two_laptops_at_once_leave_one_python(up: Up, home: Path, made: Standalone) -> None:
    go = home / "go"
    program(home, "cat", SLOW.format(f"until [ -e {go} ]; do sleep 0.01; done"))
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(give, up, made, home) for _ in range(2)]
        until(lambda: len(arriving(home)) == 2)
        go.touch()
        for each in both:
            each.result(60)
    go.unlink()

    assert [path.name for path in bundles(home).iterdir()] == [made.name]


def test_where_none_can_be_fetched_the_node_is_told_of_and_nothing_is_left(
    up: Up, home: Path, laptop: Path, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(home, "python3", OLD)
    away = shelf.at(tmp_path, url="http://127.0.0.1:9/python.tar.gz")
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", away.listed.as_uri())
    (laptop / "bundles").unlink()  # with what was fetched before

    with pytest.raises(Unfit) as refused:
        bundle.ensure(up)

    sentence = str(refused.value)
    assert f"(found {home}/bin/python3 (3.8.10)), and none can be sent: CPython {pythons.MINOR} for" in sentence
    assert "cannot be fetched: " in sentence
    assert refused.value.hint.startswith("is github.com reachable from here? UV_PYTHON_INSTALL_MIRROR names")
    assert list(bundles(home).iterdir()) == []
    assert [path.name for path in (laptop / "bundles").iterdir()] == ["pythons"]


def test_uv_fetches_for_another_machine_too_and_what_is_kept_is_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    there = Platform(pythons.MINOR, machine, "musl", "1.2")
    made = []
    for name in ("one", "two"):
        monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / name))
        assert standalone.cached(there) is None
        made.append(standalone.fetched(there))
        assert standalone.cached(there) == made[-1]

    assert made[0] == made[1]
    with tarfile.open(made[0].path) as archive:
        names = archive.getnames()
    assert {"bin/python3", f"lib/python{pythons.MINOR}/os.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.startswith(("include", "share"))]
    made[1].path.write_bytes(made[1].path.read_bytes()[:-1])
    assert standalone.cached(there) is None


def test_what_is_not_as_published_is_not_taken(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Platform(pythons.MINOR, "x86_64", "glibc", "2.36")
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    other = shelf.at(tmp_path, sha256=hashlib.sha256(b"another").hexdigest())
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS_JSON_URL", other.listed.as_uri())
    with pytest.raises(HoldfastError, match="cannot be fetched: Hash mismatch for"):
        standalone.fetched(there)
    assert standalone.cached(there) is None


def test_without_uv_a_person_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(HoldfastError, match="this machine has no uv, which fetches it") as refused:
        standalone.fetched(Platform("3.12", "x86_64", "glibc", "2.36"))

    assert refused.value.hint == "pip install uv"
