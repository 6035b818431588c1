"""How the bytes of a chunk are stored: as they are, or as byte planes behind zstd.

The number of a codec other than 0 is the width of its elements in bytes: plane k holds every k-th byte of each element,
the planes stand one after the other, and one zstd frame holds them all. Floats of a training have exponents that
resemble each other and mantissas that do not; apart, the former become small (ZipNN, arXiv 2411.05239).
"""

from __future__ import annotations

import threading

import zstandard

from holdfast.checkpoint.canonical import Damaged

NONE = 0
CODECS = frozenset({NONE, 1, 2, 4, 8})
_LEVEL = 1
_MAX_WINDOW_BYTES = 64 << 20  # a frame of a chunk needs no more; what a hostile one asks for is refused


class _Engines(threading.local):
    """One thread's: neither may be used by two at once."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)


_engines = _Engines()


def encode(raw: bytes | memoryview, width: int) -> tuple[int, bytes]:
    """(codec, stored bytes) of a chunk whose elements are `width` bytes wide: 1, 2, 4 or 8.

    Codec 0 with the bytes as they are when compression would not make them fewer.
    """
    plain = bytes(raw)
    planes = plain if width == 1 else b"".join(plain[index::width] for index in range(width))
    stored = _engines.compressor.compress(planes)
    return (width, stored) if len(stored) < len(plain) else (NONE, plain)


def decode(codec: int, stored: bytes | memoryview, raw_bytes: int) -> bytes:
    """The inverse of `encode`, `raw_bytes` long; takes no more memory than a few times that. Raises Damaged."""
    if codec == NONE:
        if len(stored) != raw_bytes:
            raise Damaged(f"a chunk of {raw_bytes} bytes is stored in {len(stored)}")
        return bytes(stored)
    try:
        frame = zstandard.get_frame_parameters(stored)
        if frame.content_size != raw_bytes or frame.dict_id or codec not in CODECS:
            raise Damaged(f"a compressed chunk (codec {codec}) is not of {raw_bytes} bytes")
        planes = _engines.decompressor.decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"a compressed chunk cannot be unpacked: {error}") from error
    return planes if codec == 1 else _joined(planes, codec)


def _joined(planes: bytes, width: int) -> bytes:
    whole, at = bytearray(len(planes)), 0
    for index in range(width):
        size = len(range(index, len(planes), width))
        whole[index::width] = planes[at : at + size]
        at += size
    return bytes(whole)
