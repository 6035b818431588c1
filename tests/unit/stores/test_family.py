"""What every store does, asked of each that runs here."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from holdfast import stores
from holdfast.stores import Store
from tests.labs.servers import BUCKET, Server


@pytest.fixture(params=["directory", "rclone", "moto", "ceph"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return stores.connect(str(tmp_path / "mirror"), {})
    server: Server = request.getfixturevalue(request.param)
    return stores.connect(f"s3://{BUCKET}/{uuid.uuid4()}", server.environ(home=tmp_path))


def test_what_was_put_is_there_whole_in_part_and_in_the_list(store: Store) -> None:
    data = os.urandom(3_000_000)

    store.put("packs/ab/one.hfp", data)
    store.put("packs/cd/two.hfp", memoryview(b"0123456789"))
    store.put("other", b"")

    assert data == store.get("packs/ab/one.hfp")
    assert data[1_000_000:1_000_500] == store.get_range("packs/ab/one.hfp", 1_000_000, 500)
    assert b"789" == store.get_range("packs/cd/two.hfp", 7, 3)
    assert {"packs/ab/one.hfp": 3_000_000, "packs/cd/two.hfp": 10} == store.list("packs/")
    assert b"" == store.get("other")


def test_the_store_tells_length_and_its_own_time(store: Store) -> None:
    store.put("a", b"12345")
    store.put("b", b"1")

    first, second = store.head("a"), store.head("b")

    assert first is not None
    assert second is not None
    assert 5 == first.size_bytes
    assert 0 <= second.modified_s - first.modified_s < 60


def test_what_is_not_there_is_told(store: Store) -> None:
    assert {} == store.list("packs/")
    assert store.head("none") is None
    store.delete("none")
    with pytest.raises(FileNotFoundError):
        store.get("none")
    with pytest.raises(FileNotFoundError):
        store.get_range("none", 0, 10)


def test_an_object_is_replaced_and_removed(store: Store) -> None:
    store.put("key", b"old")
    store.put("key", b"new one")
    assert b"new one" == store.get("key")

    store.delete("key")

    assert store.head("key") is None


def test_a_conditional_put_is_probed_and_not_believed(store: Store, request: pytest.FixtureRequest) -> None:
    assert ("rclone" not in request.node.name) == stores.enforces_create(store, "probe")
    assert store.head("probe") is None


def test_where_conditions_hold_the_second_who_creates_is_told(store: Store) -> None:
    if not stores.enforces_create(store, "probe"):
        return
    store.put("terms/000001.json", b"mine", create=True)
    with pytest.raises(FileExistsError):
        store.put("terms/000001.json", b"yours", create=True)
    assert b"mine" == store.get("terms/000001.json")
