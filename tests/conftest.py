"""Object stores for whoever mirrors, and wheels for nodes, each once a session; and Ctrl-C as a terminal gives it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import ceph as ceph_cluster
from tests.labs import servers
from tests.labs.pythons import Shelf
from tests.labs.pythons import shelf as make_shelf
from tests.labs.servers import Server

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in what they start in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup this one


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheels that nodes get: a cache that fills as tests need it."""
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """A Python that uv can fetch without a network."""
    return make_shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`rclone serve s3`."""
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`moto_server`."""
    with servers.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Ceph object gateway."""
    with ceph_cluster.gateway(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(params=["rclone", "moto", "ceph"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each S3 server in turn."""
    found: Server = request.getfixturevalue(request.param)
    return found
