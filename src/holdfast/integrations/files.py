"""A file as checkpointers see it, over chunks in packs: written once from start to end, read from anywhere.

A file is stored as a tensor of bytes under its name. Chunks are cut at the start of every large write, which is where
`torch.save` puts a tensor's bytes: so a tensor that has not changed makes the same chunks wherever it lies in the file.
"""

from __future__ import annotations

import io
import mmap
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from holdfast.checkpoint import reading
from holdfast.checkpoint.boxes import Box
from holdfast.checkpoint.canonical import Damaged
from holdfast.fsio import BLOCK
from holdfast.integrations.catalog import FILE, Entry
from holdfast.integrations.parts import Part

CHUNK_BYTES = 2 << 20
_LARGE_WRITE = 256 << 10
_CHUNKS_HELD = 8  # of a file being read: small reads come in clusters


class StagedFile(io.RawIOBase):
    """A file being written. `close` seals it and calls `when_whole`; after an error in the writer it is dropped.

    autocommit: off while fsspec's transaction decides; it calls `commit` or `discard`.
    """

    def __init__(self, part: Part, name: str, when_whole: Callable[[Part, int], None], *, autocommit: bool) -> None:
        """name: of the file in the checkpoint."""
        self.name, self.autocommit = name, autocommit
        self._part, self._when_whole = part, when_whole
        self._size = 0
        self._chunk, self._filled = _page_memory(), 0
        self._tensors: list[dict[str, Any]] = []
        self._outer = sys.exc_info()[1]

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """How much has been written, in bytes."""
        return self._size

    def write(self, data: Any) -> int:
        """All of `data`. Raises OSError when the disk is full."""
        with memoryview(data) as given, given.cast("B") as view:
            if view.nbytes >= _LARGE_WRITE:
                self._cut()
            for at in range(0, view.nbytes, CHUNK_BYTES):
                self._append(view[at : at + CHUNK_BYTES])
            if view.nbytes >= _LARGE_WRITE:
                self._cut()
            return view.nbytes

    def _append(self, view: memoryview) -> None:
        while view.nbytes:
            count = min(view.nbytes, CHUNK_BYTES - self._filled)
            self._chunk[self._filled : self._filled + count] = view[:count]
            self._filled += count
            self._size += count
            view = view[count:]
            if self._filled == CHUNK_BYTES:
                self._cut()

    def _cut(self) -> None:
        """End the chunk here, unless it is empty."""
        if not self._filled:
            return
        count = self._filled
        tensor = _bytes_tensor(self.name, self._size - count, count)
        self._tensors.append(tensor)
        padded = -(-count // BLOCK) * BLOCK
        self._part.add(self._chunk[:padded], count, kind="other", tensors=[tensor])
        self._chunk, self._filled = _page_memory(), 0

    def close(self) -> None:
        """Seal what was written, and hand it on. Dropped instead while an error goes through the writer."""
        if self.closed:
            return
        error = sys.exc_info()[1]
        super().close()
        if error is not None and error is not self._outer:
            self.discard()
            return
        self._cut()
        if not self._tensors:
            self._tensors.append(_bytes_tensor(self.name, 0, 0))
            self._part.add(memoryview(b""), 0, kind="other", tensors=self._tensors)
        for tensor in self._tensors:
            tensor["global_shape"] = [self._size]
        self._part.seal(self.about())
        if self.autocommit:
            self.commit()

    def about(self) -> dict[str, Any]:
        """What the part is said to be."""
        return {"file": self.name, "size": self._size}

    def commit(self) -> None:
        """Make the file appear. For fsspec's transaction."""
        self._when_whole(self._part, self._size)

    def discard(self) -> None:
        """Forget the file. For fsspec's transaction."""
        super().close()
        self._part.drop()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self.discard()
        else:
            self.close()

    def __del__(self) -> None:
        if not self.closed:  # nobody closed it, so nobody said that it is whole
            self.discard()


def _page_memory() -> memoryview:
    return memoryview(mmap.mmap(-1, CHUNK_BYTES))


def _bytes_tensor(name: str, start: int, count: int) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": "uint8",
        "shape": [count],
        "global_shape": [start + count],
        "index": [start],
        "offset": 0,
        "bytes": count,
    }


class StoredFile(io.BufferedReader):
    """A stored file, to be read from anywhere."""

    def __init__(self, raw: Stored) -> None:
        self.size = raw.size
        super().__init__(raw, CHUNK_BYTES)


class Stored(io.RawIOBase):
    """A stored file without a buffer; every byte is held against its hash before it is handed out.

    The checkpoint stays, whatever replaces it, until this is closed.
    """

    def __init__(self, root: Path, entry: Entry, file: str) -> None:
        """Raises Damaged, OSError."""
        self._stack = ExitStack()
        self._what = entry.name if entry.kind == FILE else f"{entry.name}/{file}"
        self.size, self._at = entry.files[file], 0
        self._held: OrderedDict[int, bytes] = OrderedDict()  # by where the chunk starts
        with ExitStack() as stack:
            self._open = stack.enter_context(reading.open_checkpoint(root, entry.info))
            self._tensor = self._open.tensors[file]
            self._stack = stack.pop_all()
        self._starts = sorted((stored.box.index[0], stored.box.shape[0]) for stored in self._tensor.boxes)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as given, given.cast("B") as view:
            count = max(0, min(view.nbytes, self.size - self._at))
            try:
                with view[:count] as part:  # an error's traceback must not hold the caller's memory
                    self._fill(part)
            except Damaged as error:
                raise Damaged(f"{self._what}: {error}", hint=error.hint) from error
            self._at += count
            return count

    def _fill(self, view: memoryview) -> None:
        if view.nbytes > CHUNK_BYTES:
            self._open.read([reading.Wanted(self._tensor, Box((self._at,), (view.nbytes,)), view)])
            return
        done = 0
        while done < view.nbytes:
            start, raw = self._chunk_at(self._at + done)
            piece = raw[self._at + done - start :][: view.nbytes - done]
            view[done : done + len(piece)] = piece
            done += len(piece)

    def _chunk_at(self, offset: int) -> tuple[int, bytes]:
        start, count = next((s, n) for s, n in self._starts if s <= offset < s + n)
        if start not in self._held:
            raw = bytearray(count)
            self._open.read([reading.Wanted(self._tensor, Box((start,), (count,)), memoryview(raw))])
            self._held[start] = bytes(raw)
            if len(self._held) > _CHUNKS_HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(start)
        return start, self._held[start]

    def close(self) -> None:
        if not self.closed:
            self._stack.close()
        super().close()
