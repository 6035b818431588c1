"""Frames: bytes to frames and back, in whatever pieces they come; what no end would say is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.service import frames
from holdfast.service.frames import Decoder, Frame, Kept, Kind, Malformed

FRAMES = st.lists(st.builds(Frame, st.sampled_from(Kind), st.binary(max_size=300)), max_size=8)


@given(FRAMES, st.integers(1, 50))
def test_pieces_do_not_matter(sent: list[Frame], size: int) -> None:
    raw = b"".join(frame.encoded() for frame in sent)
    decoder = Decoder()

    got = [frame for at in range(0, len(raw), size) for frame in decoder.fed(raw[at : at + size])]

    assert sent == got


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_refused(raw: bytes) -> None:
    try:
        got = list(Decoder().fed(raw))
    except Malformed:
        return
    assert raw.startswith(b"".join(frame.encoded() for frame in got))


@pytest.mark.parametrize("raw", [b"\x07" + bytes(4), b"\x01\x00\x01\x00\x01", b"\x00\xff\xff\xff\xff"])
def test_a_kind_or_a_size_that_is_none_is_refused_at_its_head(raw: bytes) -> None:
    with pytest.raises(Malformed):
        list(Decoder().fed(raw))


def test_payloads_come_back() -> None:
    assert frames.output_of(frames.output(2, b"x")) == (2, b"x")
    assert frames.ack_of(frames.ack(1 << 40)) == 1 << 40
    assert frames.exit_of(frames.exit_(-15)) == -15
    assert frames.signal_of(frames.signal(28, 7)) == (28, 7)
    assert frames.resize_of(frames.resize(1 << 20)) == 0xFFFF


def test_a_payload_of_another_size_is_refused() -> None:
    for read in (frames.ack_of, frames.exit_of, frames.signal_of, frames.resize_of):
        with pytest.raises(Malformed):
            read(Frame(Kind.ACK, b"123"))
    with pytest.raises(Malformed):
        frames.output_of(Frame(Kind.OUTPUT, b"\x03x"))


def test_what_is_acknowledged_goes_and_the_rest_keeps_its_numbers() -> None:
    kept = Kept()
    for text in (b"a", b"b", b"c"):
        kept.add(frames.output(1, text))

    kept.acknowledge(2)

    assert (kept.first, kept.end) == (2, 3)
    assert kept.some(2, 1 << 20) == [frames.output(1, b"c")]
    with pytest.raises(Malformed):
        kept.acknowledge(4)


def test_single_bytes_fill_the_window_too() -> None:
    kept = Kept()
    while not kept.is_full:
        kept.add(frames.output(1, b"x"))

    count = kept.end
    assert count < frames.WINDOW_BYTES / 100
    assert len(kept.some(0, 10 * frames.COST_BYTES)) == 10
    kept.acknowledge(count)
    while not kept.is_full:
        kept.add(frames.output(1, b"x"))
    assert kept.end == 2 * count
