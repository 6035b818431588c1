"""Killed or without power while sending: the mirror holds whole checkpoints only, and little is sent twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from holdfast.checkpoint import load
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.mirror import pull
from holdfast.mirror.keeper import Keeper
from holdfast.mirror.push import UPLOADS
from holdfast.mirror.view import ROOT, View
from holdfast.node.mirroring import policy
from holdfast.plan import Keep
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
    """Of taking a term, of sending a third checkpoint, of retiring the first, and of what all these do besides."""
    before, ours = Machine(tmp_path / "before"), Machine(tmp_path / "ours")
    before.begin(1, claim="a")
    infos = [before.save(seed=seed, sequence=seed, step=10 * seed) for seed in (1, 2)]
    shutil.copytree(before.root, ours.root)
    ours.begin(2, base=infos[1].position)
    newest = ours.save(seed=3, term=2, sequence=3, step=30)
    expected, seen, operation = state_of(ours.root), set(), 0
    while True:
        disk = CrashDisk()
        disk.make_folder(MIRROR.parent)
        for info in infos:
            keeper_on(disk, before).push(info)
        disk.stop_at = len(disk.operations) + operation
        try:
            send_and_retire(keeper_on(disk, ours), newest)
        except PowerCut:
            operation += 1
        else:
            break
        for after in (disk.reboot(), disk.reboot(keep_all=True), disk.reboot(random.Random(operation))):
            view = View(DirectoryStore("/nas/mirror", MIRROR, after), {})
            found = load.checkpoints(ROOT, view)
            seen.add(tuple(info.step for info in found))
            assert all(load.verify(ROOT, info, view) == [] for info in found)
        send_and_retire(keeper_on(after, ours), newest)
        assert [20, 30] == [info.step for info in keeper_on(after, ours).there()]
    bare = Machine(tmp_path / "bare")
    brought(DirectoryStore("/nas/mirror", MIRROR, after), bare)
    assert expected == state_of(bare.root)
    assert {(10, 20), (10, 20, 30), (20, 30)} == seen
    assert operation > 70


def keeper_on(disk: CrashDisk, machine: Machine) -> Keeper:
    return Keeper(machine.root, DirectoryStore("/nas/mirror", MIRROR, disk))


def send_and_retire(keeper: Keeper, info: CheckpointInfo) -> None:
    keeper.push(info)
    keeper.retire(policy(Keep(last=2)), grace_s=0.0)
