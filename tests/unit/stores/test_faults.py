"""Everything that can go wrong between us and a store, from each server: told in a sentence, or not noticed at all."""

from __future__ import annotations

import os
import random
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast import stores, urls
from holdfast.errors import StoreRefused, UsageError
from holdfast.stores import IMPATIENT, Patience, refusal
from holdfast.stores.retry import Transient, pause_s, retrying
from tests.labs import faultproxy
from tests.labs.servers import BUCKET, SECRET, Server, free_port

QUICK = Patience(deadline_s=2.0, first_s=0.01, most_s=0.05)
LASTING = Patience(deadline_s=30.0, first_s=0.01, most_s=0.05)  # where the store comes back: the machine may be slow
ONCE = Patience(deadline_s=0.0)  # a resolver that waits for its own servers makes each try a long one


@pytest.mark.parametrize("fault", faultproxy.FAULTS)
def test_a_fault_that_passes_changes_nothing(server: Server, fault: str, tmp_path: Path) -> None:
    data = os.urandom(700_000)
    with faultproxy.between(server.port) as proxy:
        proxy.fault = lambda method, path, number: fault if number % 2 else None
        store = stores.connect(f"s3://{BUCKET}/{uuid.uuid4()}", server.environ(port=proxy.port, home=tmp_path), LASTING)

        store.put("packs/one", data)

        assert data == store.get("packs/one")
        assert data[5000:6000] == store.get_range("packs/one", 5000, 1000)
        assert {"packs/one": 700_000} == store.list("packs/")
        store.delete("packs/one")
        assert store.head("packs/one") is None


def test_a_store_that_is_away_is_told_once_patience_ends(tmp_path: Path, moto: Server) -> None:
    with faultproxy.between(moto.port) as proxy:
        proxy.down = True
        environ, patience = moto.environ(port=proxy.port, home=tmp_path), replace(QUICK, deadline_s=4.0)
        store = stores.connect(f"s3://{BUCKET}/x", environ, patience)
        with pytest.raises(StoreRefused, match=r"the connection broke"):
            store.put("key", b"data")
        assert proxy.requests["PUT"] > 3


def test_an_upload_that_arrived_damaged_is_sent_again(server: Server, tmp_path: Path) -> None:
    """No server can be trusted to check what it got."""
    with faultproxy.between(server.port) as proxy:
        proxy.fault = lambda method, path, number: "flip" if number == 1 else None
        store = stores.connect(f"s3://{BUCKET}/{uuid.uuid4()}", server.environ(port=proxy.port, home=tmp_path), LASTING)

        store.put("key", b"x" * 100_000)

        assert b"x" * 100_000 == store.get("key")
        assert proxy.requests["PUT"] == 2


def refused(url: str, environ: dict[str, str], patience: Patience = QUICK) -> StoreRefused:
    with pytest.raises(StoreRefused) as caught:
        stores.connect(url, environ, patience).list("manifests/")
    assert 14 == caught.value.exit_code
    assert SECRET not in f"{caught.value} {caught.value.hint}"
    return caught.value


def test_a_wrong_bucket_is_named(server: Server, tmp_path: Path) -> None:
    said = refused("s3://no-such-bucket/x", server.environ(home=tmp_path))
    assert "NoSuchBucket" in str(said)
    assert "bucket" in said.hint


def test_a_wrong_secret_is_told_without_it(rclone: Server, tmp_path: Path) -> None:
    said = refused(f"s3://{BUCKET}/x", {**rclone.environ(home=tmp_path), "AWS_SECRET_ACCESS_KEY": SECRET[::-1]})
    assert "SignatureDoesNotMatch" in str(said)
    assert "secret key" in said.hint


def test_a_name_that_does_not_resolve_is_told(tmp_path: Path, moto: Server) -> None:
    said = refused(
        f"s3://{BUCKET}/x", {**moto.environ(home=tmp_path), "AWS_ENDPOINT_URL": "http://store.invalid"}, ONCE
    )
    assert "cannot be resolved" in str(said)


def test_a_port_where_nobody_listens_is_told(tmp_path: Path, moto: Server) -> None:
    environ = {**moto.environ(home=tmp_path), "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    assert "nothing listens" in str(refused(f"s3://{BUCKET}/x", environ))


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9", "http://", "http://a b", "http://127.0.0.1:99999", "ftp://host"])
def test_an_endpoint_that_is_no_url_is_told_without_asking_it(endpoint: str, tmp_path: Path) -> None:
    said = refused(f"s3://{BUCKET}/x", {"HOME": str(tmp_path), "AWS_ENDPOINT_URL": endpoint})
    assert endpoint in str(said)
    assert "https://HOST:PORT" in said.hint


def test_a_client_that_breaks_down_is_told(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert "broke down" in str(refused(f"s3://{BUCKET}/x", {**environ, "AWS_REGION": "no region"}))


def test_a_folder_that_is_not_mounted_is_told_and_not_made(tmp_path: Path) -> None:
    store = stores.connect(str(tmp_path / "nas" / "runs" / "digits"), {}, IMPATIENT)
    with pytest.raises(StoreRefused, match="there is no folder"):
        store.list("leases/")
    with pytest.raises(StoreRefused, match="there is no folder") as caught:
        store.put("key", b"")
    assert "mounted" in caught.value.hint
    assert not (tmp_path / "nas").exists()


def test_a_folder_that_goes_away_is_told_and_made_again(tmp_path: Path) -> None:
    store = stores.connect(str(tmp_path / "mirror"), {}, IMPATIENT)
    store.put("leases/one", b"1")
    shutil.rmtree(tmp_path / "mirror")

    with pytest.raises(StoreRefused, match="is gone"):
        store.put("leases/one", b"2")
    store.put("leases/one", b"3")

    assert store.get("leases/one") == b"3"


def test_a_folder_that_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    store = stores.connect(str(tmp_path / "mirror"), {}, IMPATIENT)
    store.put("leases", b"a file where a folder should be")

    with pytest.raises(StoreRefused, match="Not a directory"):
        store.head("leases/one")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s4://bucket/x", "did you mean s3://"),
        ("bucket/x", "neither a URL"),
        ("s3://", "names no bucket"),
        ("s3://key:secret@bucket/x", "more than a bucket"),
        ("az://box/x?sig=abc", "more than a bucket"),
        ("file://nas/x", "absolute path"),
        ("s3//bucket/x", "neither a URL"),
        ("s3://my bucket/x", "cannot be a bucket's name"),
        ("s3://bucket/a//x", "from name to name"),
        ("s3://bucket/../x", "from name to name"),
        ("s3://bucket/x#y", "more than a bucket"),
    ],
)
def test_a_url_that_cannot_be_is_refused_without_its_secrets(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        urls.scheme_of(url)
    assert "secret@" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_pauses_grow_and_are_drawn_from_the_whole_range() -> None:
    patience, rng = Patience(first_s=1.0, most_s=8.0), random.Random(1)
    drawn = {tries: [pause_s(tries, patience, rng) for _ in range(200)] for tries in (1, 2, 3, 4, 9)}
    assert [1, 2, 4, 8, 8] == [round(max(pauses)) for pauses in drawn.values()]
    assert max(min(pauses) for pauses in drawn.values()) < 0.2


def test_what_is_refused_is_not_tried_again() -> None:
    tries = []

    def no(failures: int) -> None:
        tries.append(failures)
        raise StoreRefused("no")

    with pytest.raises(StoreRefused):
        retrying(no, QUICK, random.Random(1))
    assert [0] == tries


def test_the_last_failure_is_what_is_raised() -> None:
    with pytest.raises(Transient):
        retrying(_always, Patience(deadline_s=0.05, first_s=0.01, most_s=0.01), random.Random(1))


def _always(_: int) -> None:
    raise Transient("again")


def test_a_wrong_clock_and_a_lack_of_rights_have_a_hint_each() -> None:
    skewed = refusal.read(
        "Server returned non-2xx status code: 403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code>"
    )
    denied = refusal.read(
        "Server returned non-2xx status code: 403 Forbidden: <Error><Code>AccessDenied</Code></Error>"
    )
    nobody = refusal.read("Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error")
    google = refusal.read("Error performing GET http://metadata.google.internal/token in 1s - HTTP error")
    assert "clock" in skewed.hint
    assert "rights" in denied.hint or "right" in denied.hint
    assert "no credentials" in nobody.why
    assert "AWS_" in nobody.hint
    assert "GOOGLE_" in google.hint
    assert not any(one.transient for one in (skewed, denied, nobody))
