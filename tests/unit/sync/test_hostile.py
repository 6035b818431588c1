"""The other end lies: that is refused with its name, nothing is written or read outside, and memory is bounded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import HoldfastError
from holdfast.sync import frames as words
from holdfast.sync.frames import Cut, Frames, Told
from holdfast.sync.manifest import Hostile, Intake, leads_out
from holdfast.sync.sending import LAST, PART, SIZE, ZEROS
from tests.unit.sync.ends import held, receiver, sender, tree

HASH = "ab" * 32
BEGIN = json.dumps({"version": 1, "source": "s"}).encode()


def entry(
    path: object, kind: object = "f", mode: object = 0o600, size: object = 1, content: object = HASH
) -> list[Any]:
    return [path, kind, mode, size, 0, content]


HOSTILE = {  # each wrong in one way: what lies in a folder comes behind it
    "absolute": [entry("/etc", "d"), entry("/etc/x")],
    "up": [entry("..", "d"), entry("../x")],
    "up inside": [entry("a", "d"), entry("a/..", "d"), entry("a/../..", "d"), entry("a/../../x")],
    "dot": [entry(".", "d"), entry("./x")],
    "nothing between": [entry("a", "d"), entry("a/", "d"), entry("a//x")],
    "empty": [entry("")],
    "slash at the end": [entry("a", "d"), entry("a/")],
    "nul": [entry("a\0b")],
    "long name": [entry("a" * 256)],
    "deep": [entry("/".join("a" * deep), "d") for deep in range(1, 300)],
    "surrogate": [entry("\ud800")],
    "second spelling": [entry("\udcc3\udca9")],
    "twice": [entry("a"), entry("a")],
    "no folder": [entry("a/b")],
    "below a file": [entry("a"), entry("a/b")],
    "below a link": [entry("a", "l", content="b"), entry("a/b")],
    "git": [entry(".git", "d"), entry(".git/config")],
    "git in capitals": [entry(".GIT", "d")],
    "git unseen": [entry(".g\u200cit", "d")],
    "staging": [entry(".holdfast-sync", "d")],
    "device": [entry("a", "c")],
    "setuid": [entry("a", mode=0o4755)],
    "negative size": [entry("a", size=-1)],
    "absurd size": [entry("a", size=1 << 70)],
    "no number": [entry("a", size=1.5)],
    "truth": [entry("a", size=True)],
    "no hash": [entry("a", content="x")],
    "link out": [entry("a", "l", content="/etc")],
    "link up": [entry("a", "l", content="../x")],
    "link sly": [entry("a", "l", content="b/../../x")],
    "no list": ["a"],
    "short": [["a", "f"]],
}


@pytest.mark.parametrize("told", HOSTILE.values(), ids=HOSTILE)
def test_a_manifest_that_no_honest_end_sends_is_refused(told: list[Any], tmp_path: Path) -> None:
    with receiver(tmp_path / "t") as (frames, raised):
        begin(frames, told)
        with pytest.raises(Told, match="the other end"):
            reply(frames)
    assert isinstance(raised[0], Hostile)
    assert not (tmp_path / "t").exists()


def begin(frames: Frames, entries: Sequence[Any]) -> None:
    frames.send(words.BEGIN, BEGIN)
    frames.send_list(words.ENTRIES, entries)
    frames.send(words.END)
    frames.flush()


def reply(frames: Frames) -> list[tuple[int, bytes]]:
    """What comes, to the end of its turn."""
    heard = []
    while not heard or heard[-1][0] not in (words.TURN, words.DONE):
        heard.append(frames.receive(20))
    return heard


def test_a_link_of_one_sync_is_not_written_through_by_the_next(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside")
    target = tree(tmp_path / "t")
    (target / "d").symlink_to(outside)
    with receiver(target, overwrite=False) as (frames, raised):
        begin(frames, [entry("d", "d", 0o700, 0, ""), entry("d/x")])
        assert [kind for kind, _ in reply(frames)] == [words.TOLD, words.DONE]
        frames.send(words.BYE)
        frames.flush()
    assert (raised, list(outside.iterdir())) == ([], [])


PACKS = {
    "another file": PART.pack(7, LAST) + b"x",
    "too much": PART.pack(0, LAST) + b"xx",
    "too many zeros": PART.pack(0, LAST | ZEROS) + SIZE.pack(2),
    "uncounted zeros": PART.pack(0, LAST | ZEROS) + b"x",
    "no head": b"x",
}


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_a_pack_that_nobody_asked_for_is_refused(pack: bytes, tmp_path: Path) -> None:
    with receiver(tmp_path / "t") as (frames, raised):
        begin(frames, [entry("a")])
        reply(frames)
        frames.send(words.PART, pack)
        frames.send(words.END)
        frames.flush()
        with pytest.raises(Told):
            reply(frames)
    assert isinstance(raised[0], Hostile)
    assert not (tmp_path / "t" / "a").exists()


def test_bytes_that_are_not_what_was_told_are_not_kept(tmp_path: Path) -> None:
    with receiver(tmp_path / "t") as (frames, raised):
        begin(frames, [entry("a")])
        reply(frames)
        frames.send(words.PART, PART.pack(0, LAST) + b"x")
        frames.send(words.END)
        frames.flush()
        told = reply(frames)
        frames.send(words.BYE)
        frames.flush()
    assert json.loads(told[0][1]) == [["changing", "a", "it was written to while it was read"]]
    assert (raised, held(tmp_path / "t")) == ([], {})


def test_what_nobody_asked_about_is_not_removed(tmp_path: Path) -> None:
    target = tree(tmp_path / "t", mine="m")
    with receiver(target, delete=True) as (frames, raised):
        begin(frames, [entry("a")])
        reply(frames)
        frames.send_list(words.GONE, ["mine", "../outside"])
        frames.send(words.END)
        frames.flush()
        with pytest.raises(Told, match="nobody asked it about"):
            reply(frames)
    assert isinstance(raised[0], Hostile)
    assert held(target).keys() == {"mine"}


def test_more_than_the_disk_holds_is_refused_before_a_byte_comes(tmp_path: Path) -> None:
    with receiver(tmp_path / "t") as (frames, raised):
        begin(frames, [entry("a", size=1 << 59)])
        with pytest.raises(Told, match=r"PiB are to come, and .* free"):
            reply(frames)
    assert "free some space" in raised[0].hint


STREAMS = {
    "a huge message": b"\x02\xff\xff\xff\xff",
    "an unknown one": b"\x63\0\0\0\0",
    "no JSON": b"\x01\0\0\0\x01{",
    "deep JSON": b"\x01\0\1\0\0" + b"[" * 65536,
    "another version": b"\x01\0\0\0\x0d" + b'{"version":9}',
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_of_something_else_is_refused(stream: bytes, tmp_path: Path) -> None:
    with receiver(tmp_path / "t") as (frames, raised):
        frames._out += stream
        frames.flush()
        with pytest.raises(Told):
            reply(frames)
    assert isinstance(raised[0], Hostile)


def test_a_manifest_without_end_is_cut_off() -> None:
    intake = Intake()
    with pytest.raises(Hostile, match="more than 250000 files"):
        for number in range(300_000):
            intake.take(entry(str(number)))


WISHES = {
    "a number there is not": (words.WANT, [[9, 0]]),
    "a negative number": (words.WANT, [[-2, 0]]),  # of a list, that would be the file
    "behind the end": (words.WANT, [[0, 1 << 40]]),
    "before the beginning": (words.WANT, [[0, -1]]),
    "words": (words.WANT, [["a", "b"]]),
    "a folder": (words.WANT, [[1, 0]]),
}


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_a_wish_that_no_honest_end_has_is_refused(wish: tuple[int, Any], tmp_path: Path) -> None:
    source = tree(tmp_path / "s", a="a")
    (source / "d").mkdir()
    with sender(source) as (frames, raised):
        while frames.receive(20)[0] != words.END:
            pass
        frames.send_list(*wish)
        frames.send(words.TURN)
        frames.flush()
        with pytest.raises((Told, Cut)):
            while True:
                frames.receive(20)
    assert isinstance(raised[0], Hostile)


def test_an_answer_without_end_is_cut_off(tmp_path: Path) -> None:
    with sender(tree(tmp_path / "s", a="a")) as (frames, raised):
        while frames.receive(20)[0] != words.END:
            pass
        with pytest.raises((Told, Cut)):
            while True:
                frames.send_list(words.DOOMED, ["x" * 4000] * 250)
    assert "says more than" in str(raised[0])


def test_what_became_a_link_meanwhile_is_not_read(tmp_path: Path) -> None:
    source, secret = tree(tmp_path / "s", a="a", d__b="b"), tree(tmp_path / "secret", b="hush")
    with sender(source) as (frames, _):
        while frames.receive(20)[0] != words.END:
            pass
        (source / "a").unlink()
        (source / "a").symlink_to(secret / "b")
        (source / "d").rename(tmp_path / "was")
        (source / "d").symlink_to(secret)
        frames.send_list(words.WANT, [[0, 0], [2, 0]])
        frames.send(words.TURN)
        frames.flush()
        heard = []
        while not heard or heard[-1][0] != words.END:
            heard.append(frames.receive(20))
    assert b"hush" not in b"".join(body for _, body in heard)


def test_errors_of_the_other_end_do_not_steer_the_terminal() -> None:
    reading, writing = os.pipe()
    frames = Frames(reading, writing)
    frames.send(words.ERROR, json.dumps({"error": "\x1b[2Jgone", "hint": "\r", "exit_code": 999}).encode())
    frames.flush()

    with pytest.raises(Told, match="gone") as told:
        frames.receive(5)

    os.close(reading)
    os.close(writing)
    assert "\x1b" not in str(told.value)
    assert (told.value.hint, told.value.exit_code) == ("\N{REPLACEMENT CHARACTER}", 1)


@pytest.mark.parametrize(
    ("path", "text", "out"),
    [
        ("a", "b", False),
        ("a", ".", False),
        ("a", "..", True),
        ("d/a", "..", False),
        ("d/a", "../..", True),
        ("d/e/a", "../../x", False),
        ("a", "d/../x", True),
        ("a", "/x", True),
        ("a", "./../x", True),
    ],
)
def test_only_leading_dots_that_stay_inside_are_known_to_stay_inside(path: str, text: str, out: bool) -> None:
    assert leads_out(path, text) is out


def test_noise_before_the_greeting_is_passed_over_and_told_when_nothing_else_comes() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"Welcome!\nlast login\n" + words.GREETING + bytes([words.BYE, 0, 0, 0, 0]))
    assert Frames(reading, writing, awaits=True).receive() == (words.BYE, b"")
    os.write(writing, b"bash: python3: not found\n")
    os.close(writing)

    with pytest.raises(HoldfastError, match="did not start there: bash: python3: not found"):
        Frames(reading, reading, awaits=True).receive()
    os.close(reading)


def test_nothing_is_said_to_an_end_that_has_not_begun() -> None:
    (reading, greeting), (theirs, writing) = os.pipe(), os.pipe()
    os.close(greeting)  # it never does
    frames = Frames(reading, writing, awaits=True)
    frames.send(words.BYE)

    with pytest.raises(HoldfastError, match="did not start there"):
        frames.flush()
    os.close(writing)
    assert os.read(theirs, 100) == b""
    os.close(reading)
    os.close(theirs)
