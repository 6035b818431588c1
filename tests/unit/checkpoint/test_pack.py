"""Packs: written as described, refused when anything differs, found again by scanning."""

from __future__ import annotations

import json
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.checkpoint import canonical, codecs, manifest, pack
from holdfast.checkpoint.canonical import Damaged, NewerFormat, digest
from holdfast.errors import HoldfastError
from holdfast.fsio import BLOCK
from holdfast.testing.crashdisk import CrashDisk
from tests.flips import places

HERE = Path("/pack")


def written(*payloads: bytes, width: int = 0) -> tuple[CrashDisk, str]:
    """A disk with one pack of these chunks at HERE, compressed if `width` is given, and the pack's name."""
    stored = [codecs.encode(payload, width) if width else (0, payload) for payload in payloads]
    plan = laid_out(
        [(digest(raw), len(raw), codec, len(data)) for raw, (codec, data) in zip(payloads, stored, strict=True)]
    )
    disk = CrashDisk()
    pack.write(disk.create(HERE), plan, [pack.padded(data) for _, data in stored])
    return disk, digest(plan.footer)


def laid_out(chunks: list[tuple[str, int, int, int]]) -> pack.Layout:
    """A pack of chunks given as (id, raw bytes, codec, stored bytes)."""
    records: list[pack.Record] = []
    for chunk_id, raw, codec, stored in chunks:
        offset = records[-1].end if records else 0
        records.append(pack.Record(id=chunk_id, offset=offset, raw_bytes=raw, stored_bytes=stored, codec=codec))
    return pack.Layout(tuple(records))


def checked(raw: bytes, name: str) -> pack.Layout:
    disk = CrashDisk()
    file = disk.create(HERE)
    file.append([raw])
    found = pack.read_layout(file, name)
    pack.check(file, name, found.records)
    return found


def raw_of(disk: CrashDisk) -> bytes:
    file = disk.open(HERE)
    data = bytearray(file.size())
    file.read(0, [memoryview(data)])
    return bytes(data)


def sink_for(record: pack.Record) -> memoryview:
    return memoryview(bytearray(b"x" * record.sink_bytes))


@given(st.lists(st.binary(max_size=9000) | st.integers(0, 9000).map(bytes), max_size=6), st.sampled_from([0, 1, 2, 8]))
def test_what_is_written_is_read_and_scanned(payloads: list[bytes], width: int) -> None:
    disk, name = written(*payloads, width=width)
    file = disk.open(HERE)

    found = pack.read_layout(file, name)
    sinks = {record.offset: sink_for(record) for record in found.records}
    pack.check(file, name, found.records, sinks.get)

    assert [bytes(sinks[r.offset][: r.raw_bytes]) for r in found.records] == payloads
    assert not any(any(sinks[r.offset][r.raw_bytes :]) for r in found.records)
    assert list(pack.scan(file)) == list(found.records)
    assert file.size() % BLOCK == 0


def test_the_same_content_has_the_same_name_and_bytes() -> None:
    first, second = written(b"a" * 5000, b"b"), written(b"a" * 5000, b"b")

    assert (raw_of(first[0]), first[1]) == (raw_of(second[0]), second[1])


def test_a_scan_goes_on_behind_a_damaged_record() -> None:
    disk, _ = written(b"a" * 5000, b"b" * 10, b"c")
    raw = bytearray(raw_of(disk))
    raw[BLOCK + 17] ^= 1
    damaged = CrashDisk()
    damaged.create(HERE).append([bytes(raw[:-BLOCK])])

    assert [record.id for record in pack.scan(damaged.open(HERE))] == [digest(b"b" * 10), digest(b"c")]


def test_a_header_that_contradicts_the_footer_is_told() -> None:
    disk, name = written(b"a" * 10)
    raw = bytearray(raw_of(disk))
    raw[200] = 1

    with pytest.raises(Damaged, match="damaged header at offset 0"):
        checked(bytes(raw), name)


@pytest.mark.parametrize("of_padding", [31, pytest.param(1, marks=pytest.mark.soak)])
def test_every_flipped_bit_of_a_compressed_chunk_is_told_or_changes_nothing(of_padding: int) -> None:
    disk, name = written(bytes(range(100)) * 10, width=4)
    raw = raw_of(disk)
    for at in places(raw[: 2 * BLOCK], of_padding=of_padding):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << at % 8
        try:
            checked(bytes(flipped), name)
        except Damaged:
            continue
        assert BLOCK <= at < BLOCK + 1000  # a bit of the frame that its content does not depend on


@pytest.mark.parametrize(
    ("raw", "codec", "stored"),
    [(10, 1, 10), (10, 1, 0), (10, 3, 5), (10, 0, 9), (pack.MAX_CHUNK_BYTES + 1, 2, 9), (0, 1, 0), (10, 16, 5)],
)
def test_a_footer_with_an_impossible_record_is_refused(raw: int, codec: int, stored: int) -> None:
    plan = laid_out([("ab" * 32, raw, codec, stored)])
    body = bytes(plan.footer_at) + plan.tail()

    with pytest.raises(Damaged, match="impossible record at offset 0"):
        checked(body, digest(plan.footer))


@settings(max_examples=300)
@given(st.binary(max_size=3 * BLOCK), st.binary(max_size=200))
def test_hostile_packs_raise_only_our_errors(body: bytes, footer: bytes) -> None:
    name = digest(footer)
    trailer = b"HLFPACK1" + len(footer).to_bytes(8, "little") + bytes.fromhex(name)
    end = footer.ljust(BLOCK - len(trailer), b"\0") + trailer
    raw = body[: len(body) // BLOCK * BLOCK] + end

    with suppress(HoldfastError):
        checked(raw, name)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 65) | st.floats(allow_nan=False) | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=300)
@given(json_values)
def test_hostile_footers_raise_only_our_errors(records: object) -> None:
    with suppress(ValueError), suppress(HoldfastError):  # ValueError: infinity cannot be spelled
        footer = canonical.encode({"version": 1, "records": [records]})
        test_hostile_packs_raise_only_our_errors.hypothesis.inner_test(b"", footer[: BLOCK - 48])


def test_a_footer_of_another_version_is_refused() -> None:
    footer = canonical.encode({"version": 2, "records": []})
    trailer = b"HLFPACK1" + len(footer).to_bytes(8, "little") + bytes.fromhex(digest(footer))

    with pytest.raises(NewerFormat, match="version 2"):
        checked(footer.ljust(BLOCK - 48, b"\0") + trailer, digest(footer))


def test_a_trailer_that_promises_a_long_footer_costs_no_memory() -> None:
    name = "ab" * 32
    trailer = b"HLFPACK1" + (1 << 60).to_bytes(8, "little") + bytes.fromhex(name)

    with pytest.raises(Damaged, match="trailer"):
        checked(bytes(BLOCK - 48) + trailer, name)


def test_the_limit_of_a_pack_holds_for_any_chunks() -> None:
    assert pack.room(1, pack.MAX_CHUNK_BYTES)
    for size in (BLOCK, 1 << 20, 16 << 20):
        count = 1
        while pack.room(count + 1, (count + 1) * size):
            count += 1
        plan = laid_out([("ff" * 32, size, 0, size)] * count)
        assert plan.footer_at + len(plan.tail()) <= pack.MAX_PACK_BYTES


def test_manifest_paths_cannot_leave_the_folder() -> None:
    assert manifest.position_of("../../000001-00000001-" + "a" * 64 + ".json") is None
    with closing(CrashDisk().create(HERE)), pytest.raises(Damaged):
        canonical.decode(b'{"a":1,"a":2}', "x")


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b'{"a":NaN}', b'{"a":1e999}', b'{ "a":1}', b"\xff", b"9" * 5000, b"[]"]
)
def test_json_that_is_not_canonical_is_damage(raw: bytes) -> None:
    with pytest.raises(Damaged):
        canonical.decode(raw, "x")


def test_canonical_json_is_as_documented() -> None:
    assert canonical.encode({"b": [1, 2.5, None, True], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5,null,true]}'
    assert json.loads(canonical.encode_checked({"a": 1}))["a"] == 1
