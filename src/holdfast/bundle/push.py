"""A bundle on its way: one stream, which this process never reads, into a Python on the node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from holdfast.bundle.closure import Bundle, cache
from holdfast.bundle.probing import Unfit
from holdfast.errors import HostUnreachable
from holdfast.link import remote
from holdfast.link.client import Up

STALLED_S = 300.0  # nothing was sent for so long, and no answer came: a slow disk there unpacks in far less
_LOOK_S = 0.1
_UNPACK = Path(__file__).with_name("unpack.py")
_MOST_BYTES = 1 << 16
Progress = Callable[[int, int], None]  # bytes sent, bytes in all


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Where a bundle goes. `kept`: SHA-256 of wheels that need not be sent. `collect`: remove what is old."""

    folder: str
    runs: str
    kept: frozenset[str] = frozenset()
    collect: bool = True


def push(up: Up, python: str, bundle: Bundle, order: Order, progress: Progress = lambda _sent, _all: None) -> None:
    """Returns when it lies there and loads. Raises Unfit with the node's own reason, HostUnreachable."""
    mark = f"holdfast-{secrets.token_hex(8)}"
    with _pack(bundle, order, mark) as pack, tempfile.TemporaryFile() as said:
        status = asyncio.run(_ride(up, _words(python), pack, said, progress))
        told = _answer(said, mark)
    if told is None:
        raise Unfit(f"{up.alias}: {python} ended with status {status} before it had the bundle")
    if not told["ok"]:
        raise Unfit(f"{up.alias}: {told['error']}", hint=told["hint"])


def _words(python: str) -> str:
    """Start the unpacker; the same in every shell, as long as the path is plain."""
    return f"""exec {python} -E -s -c 'import sys; exec(sys.stdin.buffer.read({_UNPACK.stat().st_size}))'"""


@contextlib.contextmanager
def _pack(bundle: Bundle, order: Order, mark: str) -> Iterator[IO[bytes]]:
    """Unpacker, order and wheels, as a file."""
    sizes_bytes, paths = bundle.sizes_bytes, {each.name: each.path for each in bundle.others}
    wheels = [(name, sizes_bytes[digest], digest) for name, digest in bundle.contents]
    head: dict[str, Any] = {"mark": mark, "hash": bundle.hash, "wheels": wheels, "kept": sorted(order.kept)}
    head |= {"folder": order.folder, "runs": order.runs, "collect": order.collect}
    with tempfile.TemporaryFile(dir=cache()) as file:
        file.write(_UNPACK.read_bytes() + json.dumps(head).encode() + b"\n")
        for name, digest in bundle.contents:
            if digest in order.kept:
                continue
            file.write(paths[name].read_bytes() if name in paths else bundle.own[1])
        file.flush()
        file.seek(0)
        yield file


async def _ride(up: Up, command: str, pack: IO[bytes], said: IO[bytes], progress: Progress) -> int:
    """The master reads from our own open file: how far it is tells how much is sent."""
    total = os.fstat(pack.fileno()).st_size
    passenger = await remote.passenger(up, command, (pack.fileno(), said.fileno(), said.fileno()))
    try:
        ended = asyncio.ensure_future(passenger.wait())
        sent, moved_s = 0, time.monotonic()
        while not (await asyncio.wait({ended}, timeout=_LOOK_S))[0]:
            now = os.lseek(pack.fileno(), 0, os.SEEK_CUR)
            if now != sent:
                sent, moved_s = now, time.monotonic()
                progress(sent, total)
            elif time.monotonic() - moved_s > STALLED_S:
                ended.cancel()
                raise HostUnreachable(f"{up.alias}: nothing of the bundle was taken for {STALLED_S:g} s")
        progress(total, total)
        return ended.result()
    finally:
        passenger.close()


def _answer(said: IO[bytes], mark: str) -> dict[str, Any] | None:
    end = said.seek(0, os.SEEK_END)
    said.seek(max(0, end - _MOST_BYTES))
    for line in reversed(said.read().decode(errors="replace").splitlines()):
        if line.startswith(mark):
            told: dict[str, Any] = json.loads(line[len(mark) :])
            return told
    return None
