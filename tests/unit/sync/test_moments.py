"""Somebody writes to the folder between what was decided and what is done: nothing of theirs goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from holdfast.sync import frames as words
from holdfast.sync.frames import Frames
from holdfast.sync.sending import LAST, PART
from tests.unit.sync.ends import receiver
from tests.unit.sync.test_hostile import begin, entry, reply


def manifest(frames: Frames, files: Mapping[str, bytes]) -> None:
    """Say what there is, and hear what is asked for."""
    begin(frames, [entry(path, size=len(data), content=blake3(data).hexdigest()) for path, data in files.items()])
    reply(frames)


def pack(frames: Frames, *contents: bytes) -> list[list[str]]:
    """Files in the order of the manifest; what became of them."""
    for number, data in enumerate(contents):
        frames.send(words.PART, PART.pack(number, LAST) + data)
    frames.send(words.END)
    frames.flush()
    return [line for kind, body in reply(frames) if kind == words.TOLD for line in json.loads(body)]


def test_a_file_that_is_changed_while_its_next_version_comes_is_kept(tmp_path: Path) -> None:
    with receiver(tmp_path) as (frames, raised):
        manifest(frames, {"a": b"one"})
        assert pack(frames, b"one") == [["brought", "a", ""]]
        manifest(frames, {"a": b"two"})
        (tmp_path / "a").write_bytes(b"mine!")
        assert pack(frames, b"two") == [["kept", "a", "it was changed there at this moment"]]
        frames.send(words.BYE)
        frames.flush()

    assert (raised, (tmp_path / "a").read_bytes()) == ([], b"mine!")


def test_a_file_that_is_changed_while_it_is_about_to_go_is_kept(tmp_path: Path) -> None:
    with receiver(tmp_path, delete=True) as (frames, raised):
        manifest(frames, {"a": b"one", "b": b"two"})
        pack(frames, b"one", b"two")
        manifest(frames, {"a": b"one"})
        (tmp_path / "b").write_bytes(b"mine!")
        frames.send_list(words.GONE, ["b"])
        assert pack(frames) == []
        frames.send(words.BYE)
        frames.flush()

    assert (raised, (tmp_path / "b").read_bytes()) == ([], b"mine!")
