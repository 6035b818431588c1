"""Both directions of a session as pure state: whatever is cut where, bytes come once, in order, within the window."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.relay.frames import PIECE_BYTES, WINDOW_BYTES, BadFrame, Frame, Kind, pack, unpack
from holdfast.relay.replay import Incoming, Outgoing


@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 6), st.booleans()), max_size=30))
def test_bytes_come_once_and_in_order_whatever_is_cut(steps: list[tuple[bytes, int, bool]]) -> None:
    out, into, came = Outgoing(), Incoming(), bytearray()

    def carry(most: int) -> None:
        for _ in range(most):
            frame = out.take()
            if frame is None:
                return
            into.arrived(unpack(pack(frame)))

    def deliver() -> None:
        while data := into.take():
            came.extend(data)
            into.went_on(len(data))
        if into.at_end:
            into.went_on(1)

    for data, frames, acknowledged in steps:
        out.add(data)
        carry(frames)
        deliver()
        if acknowledged:
            out.acknowledged(into.delivered)
        out.take()  # on its way when the line is cut
        out.rewind(into.received)
    out.end()
    carry(1_000)
    deliver()
    out.acknowledged(into.delivered)

    assert bytes(came) == b"".join(data for data, _, _ in steps)
    assert out.is_over and into.is_over
    assert out.total == into.received == len(came) + 1


def test_nothing_comes_after_the_end() -> None:
    into = Incoming()
    into.arrived(Frame(Kind.END, 0))

    for late in (Frame(Kind.DATA, 1, b"x"), Frame(Kind.END, 1)):
        with pytest.raises(BadFrame, match="where 1 is next"):
            into.arrived(late)


def test_the_end_is_sent_again_like_a_byte() -> None:
    out = Outgoing()
    out.add(b"abc")
    out.end()
    assert [out.take(), out.take(), out.take()] == [Frame(Kind.DATA, 0, b"abc"), Frame(Kind.END, 3), None]

    out.rewind(3)

    assert [out.take(), out.take()] == [Frame(Kind.END, 3), None]
    out.acknowledged(3)
    assert not out.is_over
    out.acknowledged(4)
    assert out.is_over


def test_room_is_what_the_other_end_has_not_taken() -> None:
    out = Outgoing()
    out.add(bytes(WINDOW_BYTES))
    assert out.room == 0
    while out.take():
        pass

    out.acknowledged(PIECE_BYTES)

    assert out.room == PIECE_BYTES


@pytest.mark.parametrize("received", [1, 5])
def test_a_resumption_from_where_nothing_is_is_refused(received: int) -> None:
    out = Outgoing()
    out.add(b"abcd")
    out.take()
    out.acknowledged(2)

    with pytest.raises(BadFrame, match=f"{received} bytes are said to have come"):
        out.rewind(received)


def test_what_was_never_sent_cannot_be_taken() -> None:
    out = Outgoing()
    out.add(b"abcd")

    with pytest.raises(BadFrame, match="4 bytes are said to be taken, of 0 sent"):
        out.acknowledged(4)


def test_what_was_taken_before_is_no_step_back() -> None:
    out = Outgoing()
    out.add(b"abcdef")
    out.take()
    out.acknowledged(4)

    out.acknowledged(2)

    assert (out.taken, out.room) == (4, WINDOW_BYTES - 2)
    out.rewind(4)
    assert out.take() == Frame(Kind.DATA, 4, b"ef")


def test_what_came_before_is_refused() -> None:
    into = Incoming()
    into.arrived(Frame(Kind.DATA, 0, b"abc"))

    with pytest.raises(BadFrame, match="bytes from 1 where 3 is next"):
        into.arrived(Frame(Kind.DATA, 1, b"bcd"))

    assert (into.take(), into.received) == (b"abc", 3)


@pytest.mark.parametrize("frame", [Frame(Kind.DATA, 1, b"x"), Frame(Kind.END, 2)])
def test_a_gap_is_refused(frame: Frame) -> None:
    with pytest.raises(BadFrame, match="where 0 is next"):
        Incoming().arrived(frame)


def test_more_than_the_window_is_refused() -> None:
    into = Incoming()
    for at in range(0, WINDOW_BYTES, PIECE_BYTES):
        into.arrived(Frame(Kind.DATA, at, bytes(PIECE_BYTES)))

    with pytest.raises(BadFrame, match="not asked for"):
        into.arrived(Frame(Kind.DATA, WINDOW_BYTES, b"x"))


def test_many_small_pieces_take_no_more_room_than_their_bytes() -> None:
    into = Incoming()
    tracemalloc.start()
    try:
        for at in range(0, 200_000, 2):
            into.arrived(Frame(Kind.DATA, at, b"xy"))
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert kept_bytes < 400_000
    assert into.take() == b"xy" * (PIECE_BYTES // 2)


@pytest.mark.parametrize(
    "message", ["text", b"", b"\x00" * 8, b"\x07" + bytes(8), b"\x00" + bytes(8), b"\x02" + bytes(9)]
)
def test_what_is_no_frame_is_refused(message: bytes | str) -> None:
    with pytest.raises(BadFrame):
        unpack(message)
