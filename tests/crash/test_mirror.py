"""Killed or without power while sending: the mirror holds whole checkpoints only, and little is sent twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from holdfast.checkpoint import load
from holdfast.mirror import pull
from holdfast.mirror.keeper import Keeper
from holdfast.mirror.push import UPLOADS
from holdfast.mirror.view import ROOT, View
from holdfast.stores import Store, connect
from holdfast.stores.file import DirectoryStore
from holdfast.testing.crashdisk import CrashDisk, PowerCut
from tests.labs import faultproxy
from tests.labs.faultproxy import Proxy
from tests.labs.servers import BUCKET, Server
from tests.mirrors import QUICK, Machine, state_of
from tests.waiting import until

MIRROR = Path("/nas/mirror")
REPOSITORY = Path(__file__).parents[2]


def pack_puts(proxy: Proxy) -> int:
    with proxy.lock:
        return sum("/packs/" in path for path in proxy.puts)


def killed_again_and_again(
    server: Server, folder: Path, *, kills: int, chunks: int, chunk_bytes: int, bytes_per_s: int
) -> None:
    ours, bare = Machine(folder / "ours"), Machine(folder / "bare")
    ours.begin(1)
    ours.save(seed=1, sequence=1, step=10, sizes=(chunk_bytes,) * chunks)
    url = f"s3://{BUCKET}/{uuid.uuid4()}"
    with faultproxy.between(server.port) as proxy:
        environ = {**os.environ, **server.environ(port=proxy.port, home=folder)}
        argv = [sys.executable, "-m", "tests.labs.pusher", str(ours.root), url, str(bytes_per_s)]
        for _ in range(kills):
            goal = pack_puts(proxy) + 1
            child = subprocess.Popen(argv, env=environ, cwd=REPOSITORY)
            until(lambda: pack_puts(proxy) >= goal or child.poll() is not None, 100)  # noqa: B023 - used at once
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert subprocess.run(argv, env=environ, cwd=REPOSITORY, timeout=100).returncode == 0
        store = connect(url, server.environ(home=folder), QUICK)
        packs = len(store.list("packs/"))
        assert packs >= kills  # every kill came before the end
        assert pack_puts(proxy) <= packs + kills * UPLOADS
    brought(store, bare)
    assert state_of(ours.root) == state_of(bare.root)


def brought(store: Store, machine: Machine) -> None:
    folder = machine.folder()
    pull.choose(View(store, {}), folder, "newest")
    folder.leave()


def test_ten_kills_send_no_more_than_what_was_on_its_way_again(rclone: Server, tmp_path: Path) -> None:
    killed_again_and_again(rclone, tmp_path, kills=10, chunks=20, chunk_bytes=1_000_000, bytes_per_s=20_000_000)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_fifty_kills_of_a_gigabyte(server: Server, tmp_path: Path) -> None:
    killed_again_and_again(server, tmp_path, kills=50, chunks=512, chunk_bytes=2 << 20, bytes_per_s=100_000_000)


def test_power_fails_at_every_operation_on_a_folder(tmp_path: Path) -> None:
    ours = Machine(tmp_path / "ours")
    ours.begin(1)
    infos = [ours.save(seed=seed, sequence=seed, step=10 * seed) for seed in (1, 2)]
    expected, operation, cuts = state_of(ours.root), 0, 0
    while True:
        disk = CrashDisk()
        disk.make_folder(MIRROR.parent)
        Keeper(ours.root, DirectoryStore("/nas/mirror", MIRROR, disk)).push(infos[0])
        disk.stop_at = len(disk.operations) + operation
        try:
            Keeper(ours.root, DirectoryStore("/nas/mirror", MIRROR, disk)).push(infos[1])
        except PowerCut:
            cuts += 1
        else:
            break
        for after in (disk.reboot(), disk.reboot(keep_all=True), disk.reboot(random.Random(operation))):
            store = DirectoryStore("/nas/mirror", MIRROR, after)
            view = View(store, {})
            found = load.checkpoints(ROOT, view)
            assert [10] == [info.step for info in found][:1]
            assert all(load.verify(ROOT, info, view) == [] for info in found)
        bare = Machine(tmp_path / f"bare-{operation}")
        Keeper(ours.root, store).push(infos[1])
        brought(store, bare)
        assert expected == state_of(bare.root)
        operation += 3  # of the eight operations of a put each is met in turn
    assert cuts > 5
