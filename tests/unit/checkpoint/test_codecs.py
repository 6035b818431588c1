"""Codecs: what goes in comes out; what is hostile costs no memory and raises our error."""

from __future__ import annotations

import random
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from holdfast.checkpoint import codecs
from holdfast.checkpoint.canonical import Damaged

WIDTHS = st.sampled_from(sorted(codecs.CODECS - {codecs.NONE}))


@given(st.binary(max_size=5000) | st.integers(0, 5000).map(bytes), WIDTHS)
def test_what_is_encoded_comes_back(raw: bytes, width: int) -> None:
    codec, stored = codecs.encode(memoryview(raw), width)

    assert codecs.decode(codec, memoryview(stored), len(raw)) == raw
    assert (codec == codecs.NONE) == (stored == raw)
    assert codec == codecs.NONE or len(stored) < len(raw)


def test_planes_make_floats_smaller_than_they_are_in_a_row() -> None:
    chance = random.Random(1)
    raw = struct.pack("<250000f", *(chance.gauss(0, 0.02) for _ in range(250000)))

    assert len(codecs.encode(raw, 4)[1]) < 0.95 * len(codecs.encode(raw, 1)[1])


@pytest.mark.parametrize("raw_bytes", [9, 11, 0, 1 << 40])
def test_another_length_than_promised_is_damage(raw_bytes: int) -> None:
    codec, stored = codecs.encode(bytes(1000), 2)

    with pytest.raises(Damaged, match="is not of"):
        codecs.decode(codec, stored, raw_bytes)


def test_a_frame_that_promises_much_costs_no_memory() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(300 << 20))

    with pytest.raises(Damaged, match="is not of 4096 bytes"):
        codecs.decode(1, bomb, 4096)


def test_bytes_behind_the_frame_are_damage() -> None:
    codec, stored = codecs.encode(bytes(1000), 1)

    with pytest.raises(Damaged, match="cannot be unpacked"):
        codecs.decode(codec, stored + b"x", 1000)


def test_a_codec_that_there_is_not_is_damage() -> None:
    with pytest.raises(Damaged, match="codec 3"):
        codecs.decode(3, codecs.encode(bytes(1000), 1)[1], 1000)


@given(st.binary(max_size=300), WIDTHS)
def test_hostile_bytes_raise_only_our_error(tail: bytes, width: int) -> None:
    frame = b"\x28\xb5\x2f\xfd" + tail
    try:
        codecs.decode(width, frame, 64)
    except Damaged:
        return
    assert zstandard.get_frame_parameters(frame).content_size == 64
