"""The pack: up to 64 MiB of chunks in one immutable file in which no byte is unaccounted for.

    record*   one header block (64 bytes, zeros), the payload, zeros to the next 4 KiB
    footer    canonical JSON: the records, in order; zeros
    trailer   the last 48 bytes of the file's last block: magic, footer length, footer hash

All parts start on 4 KiB, so that a payload goes from memory to the medium by O_DIRECT. The file's name is the BLAKE3
of its footer, the footer holds the BLAKE3 of every payload, and everything else follows from the footer: so the name
alone decides whether a file is whole. `docs/reference/format.md` has the layout byte by byte.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from blake3 import blake3

from holdfast.checkpoint import canonical, codecs
from holdfast.checkpoint.canonical import Damaged, is_count, is_hash
from holdfast.checkpoint.parallel import ordered
from holdfast.checkpoint.scratch import Scratch
from holdfast.fsio import BLOCK, Bytes, Disk, File

MAX_PACK_BYTES = 64 << 20
MAX_CHUNK_BYTES = 48 << 20
MAX_RECORDS = MAX_PACK_BYTES // BLOCK
VERSION = 1

_RECORD_MAGIC = b"HLFREC01"
_PACK_MAGIC = b"HLFPACK1"
_HEADER = struct.Struct("<8sII32sQQ")  # magic, version, codec, chunk id, raw bytes, stored bytes
_TRAILER = struct.Struct("<8sQ32s")  # magic, footer bytes, footer hash
_scratch = Scratch()
_FOOTER_PER_RECORD = 160  # an upper bound of one record's JSON, in bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One chunk in a pack. `offset` is that of its header; sizes in bytes without padding, `id` is of the raw bytes."""

    id: str
    offset: int
    raw_bytes: int
    stored_bytes: int
    codec: int = codecs.NONE

    @property
    def padded_bytes(self) -> int:
        """Length of the payload with its zeros."""
        return _blocks(self.stored_bytes)

    @property
    def sink_bytes(self) -> int:
        """Length of the memory that `read_record` fills: the raw bytes and zeros up to a whole block."""
        return _blocks(self.raw_bytes)

    @property
    def end(self) -> int:
        """Where the next record starts."""
        return self.offset + BLOCK + self.padded_bytes

    def header(self) -> bytes:
        """The 64 bytes at `offset`; zeros fill the block."""
        values = (VERSION, self.codec, bytes.fromhex(self.id), self.raw_bytes, self.stored_bytes)
        return _HEADER.pack(_RECORD_MAGIC, *values)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a pack holds; everything about its bytes but the payloads follows."""

    records: tuple[Record, ...]

    @property
    def footer(self) -> bytes:
        """Canonical JSON; its hash is the pack's name."""
        rows = [
            {"codec": r.codec, "id": r.id, "offset": r.offset, "raw": r.raw_bytes, "stored": r.stored_bytes}
            for r in self.records
        ]
        return canonical.encode({"records": rows, "version": VERSION})

    @property
    def footer_at(self) -> int:
        """Where the footer starts, in bytes."""
        return self.records[-1].end if self.records else 0

    def tail(self) -> bytes:
        """Footer, zeros and trailer: the end of the file, whole blocks."""
        footer = self.footer
        trailer = _TRAILER.pack(_PACK_MAGIC, len(footer), blake3(footer).digest())
        return footer.ljust(_blocks(len(footer) + len(trailer)) - len(trailer), b"\0") + trailer


def _blocks(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK) * BLOCK


def padded(raw: Bytes) -> memoryview:
    """A copy of `raw` on a page of its own with zeros up to a whole block: what a record's payload must be."""
    size = memoryview(raw).nbytes
    if not size:
        return memoryview(b"")
    copy = mmap.mmap(-1, _blocks(size))
    copy[:size] = memoryview(raw).cast("B")
    return memoryview(copy)


def room(count: int, payload_bytes: int) -> bool:
    """Whether `count` chunks of `payload_bytes` in all, each rounded up to 4 KiB, fit into one pack."""
    footer = _blocks(count * _FOOTER_PER_RECORD + BLOCK)
    return count * BLOCK + payload_bytes + footer <= MAX_PACK_BYTES


def path(root: Path, name: str) -> Path:
    """Where the pack called `name` lies below the checkpoint folder."""
    return root / "packs" / name[:2] / f"{name}.hfp"


@contextmanager
def opened(disk: Disk, root: Path, name: str, size_bytes: int, *, cached: bool = True) -> Iterator[File]:
    """The pack called `name`, of the length that a manifest says. Raises Damaged, OSError."""
    try:
        file = disk.open(path(root, name), cached=cached)
    except FileNotFoundError as error:
        raise Damaged(f"pack {name[:12]} is missing") from error
    with closing(file):
        if file.size() != size_bytes:
            raise Damaged(f"pack {name[:12]} has {file.size()} bytes instead of {size_bytes}")
        yield file


def write(file: File, plan: Layout, payloads: Sequence[Bytes]) -> None:
    """Append all bytes of a pack; `payloads` come padded to 4 KiB, page-aligned where speed matters. Raises OSError."""
    headers = memoryview(mmap.mmap(-1, max(1, len(plan.records)) * BLOCK))
    parts: list[Bytes] = []
    for index, (record, payload) in enumerate(zip(plan.records, payloads, strict=True)):
        block = headers[index * BLOCK : (index + 1) * BLOCK]
        block[: _HEADER.size] = record.header()
        parts += [block, payload] if record.padded_bytes else [block]
    tail = plan.tail()
    end = mmap.mmap(-1, len(tail))
    end[:] = tail
    file.append([*parts, end])  # at once: the fewer calls, the faster past the page cache


def read_layout(file: File, name: str) -> Layout:
    """The footer of the pack called `name`, checked against that name and the file's length.

    Raises Damaged, OSError.
    """
    what, size = f"pack {name[:12]}", file.size()
    if size % BLOCK or not BLOCK <= size <= MAX_PACK_BYTES:
        raise Damaged(f"{what} has {size} bytes, which no pack has")
    magic, footer_bytes, footer_hash = _TRAILER.unpack(_exactly(file, size - BLOCK, BLOCK, what)[-_TRAILER.size :])
    tail_bytes = _blocks(footer_bytes + _TRAILER.size)
    if magic != _PACK_MAGIC or footer_hash.hex() != name or tail_bytes > size:
        raise Damaged(f"{what} does not end in the trailer its name asks for")
    tail = _exactly(file, size - tail_bytes, tail_bytes, what)
    if canonical.digest(tail[:footer_bytes]) != name:
        raise Damaged(f"{what} has a footer that does not match its name")
    found = _parse(canonical.decode(tail[:footer_bytes], what), what)
    if found.tail() != tail or found.footer_at + tail_bytes != size:
        raise Damaged(f"{what} has bytes that its footer does not account for")
    return found


def _exactly(file: File, offset: int, size: int, what: str) -> bytes:
    aligned = mmap.mmap(-1, size)
    if file.read(offset, [memoryview(aligned)]) != size:
        raise Damaged(f"{what} ends early")
    return aligned[:]


def _parse(footer: dict[str, Any], what: str) -> Layout:
    if footer.get("version") != VERSION:
        raise canonical.NewerFormat(what, footer.get("version"))
    rows = footer.get("records")
    if not isinstance(rows, list) or len(rows) > MAX_RECORDS:
        raise Damaged(f"{what} has no list of records")
    records: list[Record] = []
    for row in rows:
        records.append(_parse_row(row, records[-1].end if records else 0, what))
    return Layout(tuple(records))


def _parse_row(row: object, offset: int, what: str) -> Record:
    if not isinstance(row, dict) or set(row) != {"codec", "id", "offset", "raw", "stored"}:
        raise Damaged(f"{what} has a malformed record in its footer")
    numbers = all(is_count(row[key]) for key in ("codec", "offset", "raw", "stored"))
    if not numbers or not is_hash(row["id"]) or row["offset"] != offset:
        raise Damaged(f"{what} has an impossible record at offset {offset}")
    record = Record(id=row["id"], offset=offset, raw_bytes=row["raw"], stored_bytes=row["stored"], codec=row["codec"])
    if not _is_possible(record):
        raise Damaged(f"{what} has an impossible record at offset {offset}")
    return record


def find(layout: Layout, name: str, chunks: Iterable[tuple[int, str, int]]) -> list[Record]:
    """The records of `chunks` (offset, id, raw bytes), each once, in the order they lie. Raises Damaged."""
    by_offset = {record.offset: record for record in layout.records}
    found: dict[int, Record] = {}
    for offset, chunk_id, raw_bytes in chunks:
        record = by_offset.get(offset)
        if record is None or (record.id, record.raw_bytes) != (chunk_id, raw_bytes):
            raise Damaged(f"pack {name[:12]} holds another chunk at offset {offset} than asked for")
        found[offset] = record
    return [found[offset] for offset in sorted(found)]


def _is_possible(record: Record) -> bool:
    """A chunk within its limit; as it is (codec 0), or in fewer bytes."""
    if record.codec == codecs.NONE:
        return record.stored_bytes == record.raw_bytes <= MAX_CHUNK_BYTES
    return record.codec in codecs.CODECS and 0 < record.stored_bytes < record.raw_bytes <= MAX_CHUNK_BYTES


SinkOf: TypeAlias = Callable[[int], memoryview | None]  # record offset → where its chunk is to go on the way, if at all


def no_sink(_offset: int) -> None:
    """To check, and keep nothing."""


def check(file: File, name: str, records: Sequence[Record], sink_of: SinkOf = no_sink) -> None:
    """Read these records of the pack called `name` and compare every byte of them. Raises Damaged, OSError.

    sink_of: gives writable memory of `sink_bytes`; called on several threads, once for each record.
    """

    def one(record: Record) -> None:
        read_record(file, record, sink_of(record.offset), f"pack {name[:12]}")

    with closing(ordered(one, records)) as done:
        for _ in done:
            pass


def check_whole(file: File, name: str) -> Layout:
    """Read the pack called `name` and compare every byte of it; what it holds. Raises Damaged, OSError."""
    layout = read_layout(file, name)
    check(file, name, layout.records)
    return layout


def read_record(file: File, record: Record, sink: memoryview | None, what: str) -> None:
    """Read one record; check header, hash and padding. Raises Damaged, OSError.

    sink: writable memory of `sink_bytes` for the raw chunk and its zeros.
    """
    straight = sink if record.codec == codecs.NONE else None
    own = _scratch.take(BLOCK + (0 if straight is not None else record.padded_bytes))
    with own, own[:BLOCK] as block, own[BLOCK:] if straight is None else straight[:] as payload:
        unpacked = _read_checked(file, record, block, payload, what)
    if sink is not None and unpacked is not None:
        sink[:] = unpacked.ljust(len(sink), b"\0")


def read_stored(file: File, record: Record, what: str) -> memoryview:
    """The payload of a record as stored, zeros included, in memory of its own; checked. Raises Damaged, OSError."""
    memory = memoryview(mmap.mmap(-1, BLOCK + record.padded_bytes))
    with memory, memory[:BLOCK] as block:
        payload = memory[BLOCK:]
        _read_checked(file, record, block, payload, what)
        return payload


def _read_checked(file: File, record: Record, block: memoryview, payload: memoryview, what: str) -> bytes | None:
    """Fill header block and payload, and check them. Returns the raw chunk where it is stored otherwise."""
    parts = [block, payload] if record.padded_bytes else [block]
    if file.read(record.offset, parts) != BLOCK + record.padded_bytes:
        raise Damaged(f"{what} ends inside the record at offset {record.offset}")
    if bytes(block) != record.header().ljust(BLOCK, b"\0"):
        raise Damaged(f"{what} has a damaged header at offset {record.offset}")
    with payload[: record.stored_bytes] as stored, payload[record.stored_bytes :] as padding:
        unpacked = _decoded(record, stored, what) if record.codec != codecs.NONE else None
        if blake3(stored if unpacked is None else unpacked).hexdigest() != record.id or not is_zero(padding):
            raise Damaged(f"{what} has a damaged chunk at offset {record.offset}")
    return unpacked


def _decoded(record: Record, stored: memoryview, what: str) -> bytes:
    try:
        return codecs.decode(record.codec, stored, record.raw_bytes)
    except Damaged as error:
        raise Damaged(f"{what} has a damaged chunk at offset {record.offset}: {error}") from error


def is_zero(view: memoryview) -> bool:
    """Whether every byte is 0; meant for paddings, a few KiB."""
    return bytes(view).count(0) == view.nbytes


def scan(file: File) -> Iterator[Record]:
    """The intact records of a pack whose footer is lost, found by their headers alone. Raises OSError."""
    offset, size = 0, file.size()
    while offset + BLOCK <= size:
        record = _at(file, offset)
        try:
            if record is None:
                raise Damaged("no header here")
            read_record(file, record, None, "pack")
        except Damaged:
            offset += BLOCK
        else:
            yield record
            offset = record.end


def _at(file: File, offset: int) -> Record | None:
    magic, version, codec, chunk_id, raw, stored = _HEADER.unpack(_exactly(file, offset, BLOCK, "pack")[: _HEADER.size])
    record = Record(id=chunk_id.hex(), offset=offset, raw_bytes=raw, stored_bytes=stored, codec=codec)
    return record if (magic, version) == (_RECORD_MAGIC, VERSION) and _is_possible(record) else None
