"""From nothing to a node that runs our code: a real sshd, a user without rights and an empty home, a noisy shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import bundle
from holdfast.bundle import closure, places, sources
from holdfast.bundle.probing import Unfit
from holdfast.bundle.push import Order, push
from holdfast.errors import HostUnreachable
from holdfast.link import mux
from holdfast.link.channels import Connection
from holdfast.link.client import Up
from holdfast.service import streams
from holdfast.service.client import Calls
from tests.labs import sshd as lab
from tests.needs import need
from tests.unit.bundle.loading import SPOILING, loads, spoil
from tests.waiting import until

pytestmark = pytest.mark.e2e
NOISE = f'echo welcome; echo "uid=0" ; printf "no newline" >&2\n{SPOILING}'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[lab.Sshd, Path]]:
    with lab.person() as (user, home), lab.sshd(tmp_path_factory.mktemp("sshd"), user, home) as server:
        (home / ".bashrc").write_text(NOISE)
        spoil(home)
        yield server, home


@pytest.fixture
def home(place: tuple[lab.Sshd, Path]) -> Iterator[Path]:
    yield place[1]
    (place[1] / ".bashrc").write_text(NOISE)


@pytest.fixture
def up(place: tuple[lab.Sshd, Path], laptop: Path) -> Iterator[Up]:
    with lab.master(place[0]) as path:
        yield Up("node", "0123456789ab", path, 0.0)


@contextlib.contextmanager
def mounted(folder: Path, owner: Path, options: str) -> Iterator[Path]:
    need(os.geteuid() == 0, "needs root to mount")
    folder.mkdir()
    about = owner.stat()
    words = f"{options},uid={about.st_uid},gid={about.st_gid},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", words, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def test_an_empty_home_gets_a_bundle_that_runs(up: Up, home: Path) -> None:
    sent: list[tuple[int, int]] = []

    node = bundle.ensure(up, progress=lambda now, all_: sent.append((now, all_)))

    loads(up, node)
    assert node.home == str(home / ".holdfast")
    assert node.folder == str(home / ".holdfast" / "bundles" / node.bundle)
    assert node.uid == home.stat().st_uid
    assert node.socket.startswith(f"/tmp/holdfast-{node.uid}/service-")
    assert sent[-1][0] == sent[-1][1] > 5_000_000
    assert {path.name for path in (home / ".holdfast" / "bundles").iterdir()} == {
        node.bundle, places.LAUNCHER, "wheels",
    }  # fmt: skip


def test_the_service_of_the_bundle_answers_where_the_node_says(up: Up) -> None:
    async def asked(node: bundle.Node) -> tuple[dict[str, Any], dict[str, Any]]:
        connection = Connection(await mux.proxied(up.path))

        async def reach() -> Connection:
            return connection

        async with Calls(streams.through(reach, node.socket)) as calls:
            answers = await calls.get("/ping"), await calls.get("/runs")
        await connection.close()
        return answers

    node = bundle.ensure(up)
    bundle.start(up, node)
    bundle.start(up, node)  # as another laptop does

    ping, told = asyncio.run(asked(node))

    assert (ping["ok"], ping["bundle"], ping["home"], told["runs"]) == (True, node.bundle, node.home, [])
    os.kill(ping["pid"], signal.SIGKILL)
    if os.geteuid() == 0:
        shutil.rmtree(f"/tmp/holdfast-{node.uid}")


def test_what_is_known_is_not_asked_and_what_is_asked_again_is_not_sent_again(up: Up, home: Path) -> None:
    node = bundle.ensure(up)
    sent: list[int] = []

    asked = bundle.ensure(up, again=True, progress=lambda now, _: sent.append(now))
    loads(up, asked)

    assert (asked, sent) == (node, [])
    assert bundle.ensure(Up(up.alias, up.key, "/nowhere", 0.0)) == node


def test_a_holdfast_that_was_changed_is_sent_by_the_next_call(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "changed" / "holdfast"
    shutil.copytree(sources.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "PACKAGE", copy)
    monkeypatch.setattr(sources, "_RECENT_NS", 50_000_000)
    until(sources.fingerprint)
    first = bundle.ensure(up)

    (copy / "new.py").write_text("it = 1\n")
    second = bundle.ensure(up)

    loads(up, second, "import holdfast.new")
    assert second.bundle != first.bundle
    assert places.remembered(up.key) == second


def test_code_on_the_node_knows_its_bundle_and_how_it_is_started(up: Up) -> None:
    node = bundle.ensure(up)
    text = "from holdfast.bundle import places; print(places.own(), *places.command())"

    said = loads(up, node, text)

    launcher = f"{node.home}/bundles/holdfast"
    assert said.endswith(f"{node.bundle} /bin/sh {launcher}\n")  # its shell said something before
    done = subprocess.run(
        [launcher, "--version"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PYTHONHOME": "/"}
    )
    assert done.stdout.startswith("holdfast"), done


def test_what_does_not_start_is_told_with_its_last_words_and_asked_anew(up: Up) -> None:
    node = bundle.ensure(up)

    with pytest.raises(Unfit, match=r"node: node service --idle no ended with status 2: .*error: --idle 'no' is not a"):
        bundle.start(up, node, ("node", "service", "--idle", "no"))
    assert places.remembered(up.key) is None


def test_what_is_started_is_young_again_so_that_it_stays(up: Up, home: Path) -> None:
    node = bundle.ensure(up)
    contents = home / ".holdfast" / "bundles" / node.bundle / places.CONTENTS
    os.utime(contents, (0, 0))

    bundle.start(up, node, ("--version",))

    assert contents.stat().st_mtime > 0


def test_an_old_python_first_on_the_path_is_passed_over(up: Up, home: Path) -> None:
    (home / "bin").mkdir()
    (home / "bin" / "python3").write_text('#!/bin/sh\necho "3.6.9 cpython True m"\n')
    (home / "bin" / "python3").chmod(0o755)
    (home / ".bashrc").write_text(f"{NOISE}export PATH=$HOME/bin:$PATH\n")

    node = bundle.ensure(up, again=True)

    assert node.python != str(home / "bin" / "python3")


@pytest.mark.parametrize(("script", "error", "sentence"), [
    ("yes", HostUnreachable, "node: what should take the bundle says too much"),
    ("read -r _; exit 4", Unfit, "node: .* ended with status 4 before it had the bundle"),
    ("$mark; echo; echo $mark [[[", Unfit, r"node: .* answers what nobody understands: '\[\[\['"),
    ("$mark; echo; echo $mark 5", Unfit, "node: .* answers what nobody understands: '5'"),
    ("$mark; echo; echo $mark '{\"ok\": 1, \"error\": 7}'", Unfit, "node: 7"),
])  # fmt: skip
def test_a_node_that_answers_nonsense_to_a_push_is_a_sentence(
    up: Up, home: Path, script: str, error: type[HostUnreachable], sentence: str
) -> None:
    known = bundle.ensure(up)
    python = home / "nonsense"
    python.write_text("#!/bin/sh\n" + script.replace("$mark;", "mark=`grep -aom1 'holdfast-[0-9a-f]\\{16\\}'`;"))
    python.chmod(0o755)
    made = closure.cached(known.platform)
    assert made is not None

    with pytest.raises(error, match=sentence):
        push(up, str(python), made, Order(folder=f"{home}/else", runs=f"{home}/runs"))


def test_a_push_whose_link_dies_leaves_nothing_half_and_works_the_next_time(
    place: tuple[lab.Sshd, Path], home: Path, laptop: Path
) -> None:
    bundles = home / ".holdfast" / "bundles"
    shutil.rmtree(bundles, ignore_errors=True)
    with lab.master(place[0]) as path:
        up = Up("node", "0123456789ab", path, 0.0)
        with pytest.raises(HostUnreachable):
            bundle.ensure(up, again=True, progress=lambda _sent, _all: _end_master(path))
    until(lambda: not list(bundles.glob(".*.part")))

    with lab.master(place[0]) as path:
        up = Up("node", "0123456789ab", path, 0.0)
        loads(up, bundle.ensure(up, again=True))


def _end_master(path: str) -> None:
    """By its pid, as its socket tells it; once."""
    with socket.socket(socket.AF_UNIX) as control, contextlib.suppress(ConnectionRefusedError):
        control.connect(path)
        pid, _, _ = struct.unpack("3i", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        os.kill(pid, signal.SIGKILL)


def test_a_home_whose_files_cannot_be_run_keeps_state_and_code_goes_elsewhere(up: Up, home: Path) -> None:
    elsewhere = Path(f"/var/tmp/holdfast-{home.stat().st_uid}")
    with mounted(home / "noexec", home, "noexec,size=1m") as there:
        (home / ".bashrc").write_text(f"{NOISE}export HOLDFAST_HOME={there}\n")
        said: list[str] = []
        try:
            node = bundle.ensure(up, again=True, tell=said.append)
            loads(up, node)
        finally:
            shutil.rmtree(elsewhere, ignore_errors=True)

    assert (node.home, node.folder) == (str(there), f"{elsewhere}/bundles/{node.bundle}")
    assert f"node: {there} is mounted noexec: our code lies in {elsewhere} instead" in said


@pytest.mark.parametrize(("options", "sentence"), [
    ("size=8m", r"8\.0 MiB are free at .*, .* are needed"),
    ("ro", "cannot be written: Read-only file system"),
])  # fmt: skip
def test_a_home_without_room_is_refused_before_anything_is_sent(
    up: Up, home: Path, options: str, sentence: str
) -> None:
    sent: list[int] = []
    with mounted(home / "small", home, options) as there:
        (home / ".bashrc").write_text(f"{NOISE}export HOLDFAST_HOME={there}\n")

        with pytest.raises(Unfit, match=sentence) as refused:
            bundle.ensure(up, again=True, progress=lambda now, _: sent.append(now))

    assert (sent, "HOLDFAST_HOME" in refused.value.hint) == ([], True)


@pytest.mark.parametrize("spare_bytes", [-(1 << 20), 1 << 20])
def test_a_bundle_fits_where_there_is_the_room_that_is_asked_for(up: Up, home: Path, spare_bytes: int) -> None:
    made = closure.cached(bundle.ensure(up).platform)
    assert made is not None
    with mounted(home / "tight", home, f"size={2 * made.unpacked_bytes + spare_bytes}") as there:
        (home / ".bashrc").write_text(f"{NOISE}export HOLDFAST_HOME={there}\n")
        with pytest.raises(Unfit, match="are free at") if spare_bytes < 0 else contextlib.nullcontext():
            assert Path(bundle.ensure(up, again=True).folder).parent.parent == there


def test_a_shell_that_never_gives_way_is_told(up: Up, home: Path) -> None:
    (home / ".bashrc").write_text("echo stopped by .bashrc >&2\nexit 4\n")

    with pytest.raises(Unfit, match=r"the shell there gave no answer: stopped by \.bashrc"):
        bundle.ensure(up, again=True)
