"""A real Ceph object gateway on loopback: one monitor, one OSD in memory, one gateway; gone with the block."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.labs.servers import BUCKET, KEY, SECRET, Server, answers, free_port, process
from tests.needs import need_program
from tests.waiting import until

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph-authtool", "monmaptool", "ceph")
CONFIG = """
[global]
fsid = {fsid}
run_dir = {folder}
log_file = {folder}/$name.log
admin_socket =
pid_file = {folder}/$name.pid
mon_host = [v2:127.0.0.1:{monitor}]
keyring = {folder}/keyring
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_data = {folder}/osd
mon_data = {folder}/mon
ms_bind_ipv6 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
rgw_thread_pool_size = 16
"""


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[Server]:
    """Up in about 20 s. Enforces conditional PUTs."""
    for program in PROGRAMS:
        need_program(program)
    monitor, port = free_port(), free_port()
    (folder / "osd").mkdir(parents=True)
    config = folder / "ceph.conf"
    fsid = str(uuid.uuid4())
    config.write_text(CONFIG.format(fsid=fsid, folder=folder, monitor=monitor, gateway=port))
    env = {**os.environ, "CEPH_CONF": str(config)}

    def call(*argv: str) -> str:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{argv}: {done.stderr[-2000:]}"
        return done.stdout

    _keyring(call, folder, monitor, fsid)
    with contextlib.ExitStack() as stack:
        stack.enter_context(process(["ceph-mon", "-f", "-i", "a"], folder / "mon.out", env))
        osd = str(uuid.uuid4())
        call("ceph", "--connect-timeout", "30", "osd", "new", osd)
        call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        stack.enter_context(process(["ceph-osd", "-f", "-i", "0"], folder / "osd.out", env))
        until(lambda: json.loads(call("ceph", "osd", "stat", "-f", "json"))["num_up_osds"], 30.0, what="the OSD")
        stack.enter_context(process(["radosgw", "-f", "-n", "client.rgw"], folder / "rgw.out", env))
        until(lambda: answers(port), 60.0, what="the gateway")
        call(
            "radosgw-admin", "-n", "client.rgw", "user", "create", "--uid", "test", "--display-name", "test",
            "--access-key", KEY, "--secret", SECRET,
        )  # fmt: skip
        _bucket(port)
        yield Server("ceph", port, conditional=True)


def _keyring(call, folder: Path, monitor: int, fsid: str) -> None:  # type: ignore[no-untyped-def]
    ring, everything = str(folder / "keyring"), ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
    call("ceph-authtool", "--create-keyring", ring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    call("ceph-authtool", ring, "--gen-key", "-n", "client.admin", *everything, "--cap", "mgr", "allow *")
    call("ceph-authtool", ring, "--gen-key", "-n", "client.rgw", *everything)
    call("ceph-authtool", ring, "--gen-key", "-n", "osd.0", "--cap", "mon", "allow *", "--cap", "osd", "allow *")
    call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor}]", str(folder / "monmap"))
    call("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"), "--keyring", ring)


def _bucket(port: int) -> None:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()
