"""What others can write to: nothing that lies there stops a save, fills memory or never ends."""

from __future__ import annotations

import contextlib
import http.server
import math
import os
import pickle
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from holdfast import stores
from holdfast.checkpoint import collect, making
from holdfast.checkpoint.folder import Folder
from holdfast.errors import StoreRefused
from holdfast.formats import dcp
from holdfast.formats.base import Unreadable
from holdfast.mirror import clock
from holdfast.mirror.view import ROOT, View
from holdfast.node.shim import SlotFiles
from holdfast.stores import Entry, Patience
from holdfast.stores.file import DirectoryStore
from tests.tensorparts import save

ONCE = Patience(deadline_s=0.0)


def test_strange_things_in_a_checkpoint_folder_keep_nobody_from_saving(tmp_path: Path) -> None:
    save(tmp_path, {"model": {"w": torch.zeros(3)}})
    for stray in ("tmp/lost+found", f"tmp/{'ab' * 8}/within", "packs/x"):
        (tmp_path / stray).mkdir(parents=True)
    (tmp_path / "packs" / "README").write_text("a file where folders are")

    with Folder(tmp_path).owned() as folder:
        folder.put("latest.json", b"{}", replace=True)
        collect.sweep(folder)


def test_links_that_lead_up_again_make_no_tree_without_end(tmp_path: Path) -> None:
    store = stores.connect(str(tmp_path), {})
    store.put("packs/ab/one", b"1")
    for number in range(6):
        (tmp_path / "packs" / f"up{number}").symlink_to("..")
        (tmp_path / "packs" / "ab" / f"up{number}").symlink_to("..")
    os.mkfifo(tmp_path / "packs" / "pipe")
    (tmp_path / "packs" / "nowhere").symlink_to("gone")

    assert store.list("packs/") == {"packs/ab/one": 1}


class Forgetful(DirectoryStore):
    """Does not show what was just put there."""

    def head(self, key: str) -> Entry | None:
        return None


def test_a_store_that_does_not_tell_the_time_makes_nothing_old(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="clock is not known"):
        clock.now_s(Forgetful(str(tmp_path), tmp_path))


class _Liar(http.server.BaseHTTPRequestHandler):
    """Sends more than was asked for, and lists without end."""

    protocol_version = "HTTP/1.1"
    sent = 0

    def do_GET(self) -> None:
        if "list-type" in self.path:
            _Liar.sent += 1
            keys = "".join(
                f"<Contents><Key>packs/{_Liar.sent}-{n}</Key><Size>1</Size>{_DATE}</Contents>" for n in range(50_000)
            )
            self._answer(
                200, f"{_LIST}<NextContinuationToken>{_Liar.sent}</NextContinuationToken>{keys}{_END}".encode()
            )
            return
        asked = self.headers["Range"].removeprefix("bytes=")
        self._answer(206, bytes(40_000_000), {"Content-Range": f"bytes {asked}/40000000"})

    def _answer(self, status: int, body: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Last-Modified": _HTTP_DATE, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # nobody listens any more
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_arguments: object) -> None:
        """Tests are quiet."""


_HTTP_DATE = "Sat, 21 Nov 2026 10:00:00 GMT"
_DATE = "<LastModified>2026-11-21T10:00:00.000Z</LastModified>"
_LIST = "<ListBucketResult><IsTruncated>true</IsTruncated>"
_END = "</ListBucketResult>"


@contextlib.contextmanager
def liar(tmp_path: Path) -> Iterator[stores.Store]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Liar) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}", "HOME": str(tmp_path),
            "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1",
        }  # fmt: skip
        yield stores.connect("s3://bucket/x", environ, ONCE)
        server.shutdown()


def test_a_store_that_sends_more_than_asked_for_is_not_listened_to(tmp_path: Path) -> None:
    with liar(tmp_path) as store, pytest.raises(StoreRefused, match="more than the 1000 bytes"):
        store.get_range("packs/one", 0, 1000)


def test_a_list_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.stores.remote.MOST_KEYS", 120_000)
    with liar(tmp_path) as store, pytest.raises(StoreRefused, match="lists more than"):
        store.list("packs/")


def test_a_manifest_too_long_to_be_one_is_not_fetched(tmp_path: Path) -> None:
    name = f"manifests/000001-00000001-{'0' * 64}.json"
    (tmp_path / "manifests").mkdir()
    with (tmp_path / name).open("wb") as file:
        file.truncate(1 << 40)

    file = View(stores.connect(str(tmp_path), {}), {}).open(ROOT / name)

    assert file.size() == 1 << 40  # who reads it looks at that first


def test_a_small_file_that_describes_large_tensors_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    side = math.isqrt(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))  # of 4 bytes each: four times memory
    overlapping = torch.zeros(2 * side).as_strided((side, side), (1, 1))

    with pytest.raises(StoreRefused, match="does not fit into memory"):
        making.make(tmp_path / "checkpoints", {"model": {"w": overlapping}}, reason="import")


def test_many_names_for_one_place_of_a_dcp_folder_are_refused(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint import save as save_dcp

    with pytest.warns(UserWarning, match="single process"):
        save_dcp({"w": torch.zeros(100_000)}, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    assert dcp.read(tmp_path)["w"].shape == (100_000,)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    (index, place), held = next(iter(metadata.storage_data.items())), metadata.state_dict_metadata["w"]
    for number in range(20):
        metadata.state_dict_metadata[f"w{number}"] = held
        metadata.storage_data[type(index)(f"w{number}", index.offset)] = place
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))

    with pytest.raises(Unreadable, match="larger than all files together"):
        dcp.read(tmp_path)


def test_files_of_others_among_the_slots_are_passed_over(tmp_path: Path) -> None:
    files = SlotFiles(tmp_path, "holdfast-ab12", "deadbeef")
    for descriptor in files.open(3):
        os.close(descriptor)
    for stranger in ("holdfast-ab12-deadbeef-x-y", "holdfast-ab12-", "holdfast-ab12-deadbeef-00009-0-0"):
        (tmp_path / stranger).touch()
    (tmp_path / "holdfast-ab12-0ddb0075-00001-0").mkdir()
    if os.geteuid() == 0:
        (tmp_path / "holdfast-ab12-deadbeef-00007-0").touch()
        os.chown(tmp_path / "holdfast-ab12-deadbeef-00007-0", 12345, 12345)

    assert files.ranks() == [3]
