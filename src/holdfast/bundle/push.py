"""A bundle on its way: one stream, which this process never reads, into a Python on the node; or a Python itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from holdfast import crowd
from holdfast.bundle.closure import Bundle, cache
from holdfast.bundle.places import VENV_LAUNCHER
from holdfast.bundle.probing import Half, Unfit
from holdfast.bundle.standalone import Standalone
from holdfast.errors import HostUnreachable
from holdfast.link import remote
from holdfast.link.client import Up

STALLED_S = 300.0  # nothing was sent for so long, and no answer came: a slow disk there unpacks in far less
_LOOK_S = 0.1
_UNPACK = Path(__file__).with_name("unpack.py")
_TAKE = Path(__file__).with_name("python.sh")
_MOST_BYTES = 1 << 16
_MOST_SAID_BYTES = 16 << 20  # it lies on our disk
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
        status = crowd.run(_ride(up, _words(python), pack, said, progress))
        answer = _answer(said, mark)
    if answer is None:
        raise Unfit(f"{up.alias}: {python} ended with status {status} before it had the bundle")
    told = _object(answer)
    if told is None:
        raise Unfit(f"{up.alias}: {python} answers what nobody understands: {answer[:100]!r}")
    if told.get("ok") is not True:
        raise Unfit(f"{up.alias}: {told.get('error', 'the bundle was refused')}", hint=str(told.get("hint", "")))


def push_python(
    up: Up,
    python: Standalone,
    folder: str,
    half: Half | None = None,
    progress: Progress = lambda _sent, _all: None,
) -> str:
    """Its path there, below `folder`, once it has run. half: what came of it before.

    Raises Unfit with the node's own reason, HostUnreachable; what had come by then is a half.
    """
    mark = f"holdfast-{secrets.token_hex(8)}"
    text = _taking(python, folder, half, mark)
    # no shell may read ahead of what it runs: the rest is the archive
    command = f"""exec /bin/sh -c 'eval "$(dd bs=1 count={len(text)} 2>/dev/null)"'"""
    with tempfile.TemporaryFile(dir=cache()) as stream, tempfile.TemporaryFile() as said:
        stream.write(text + python.path.read_bytes()[half.size_bytes if half else 0 :])
        stream.flush()
        stream.seek(0)
        status = crowd.run(_ride(up, command, stream, said, progress))
        answer = _answer(said, mark)
    if answer == "taken" and half is not None:
        return push_python(up, python, folder, None, progress)
    if answer != "ok":
        raise Unfit(f"{up.alias}: {answer or f'the shell there ended with status {status} before it had a Python'}")
    return f"{folder}/{python.name}/bin/python3"


def _taking(python: Standalone, folder: str, half: Half | None, mark: str) -> bytes:
    given = {
        "mark": mark,
        "folder": folder,
        "name": python.name,
        "half": half.name if half else "",
        "begun": str(half.size_bytes if half else 0),
        "size": str(python.size_bytes),
        "sha256": python.sha256,
        "settle": _UNPACK.read_text(),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in given.items()).encode() + _TAKE.read_bytes()


def _words(python: str) -> str:
    """Start the unpacker; the same in every shell, as long as the path is plain."""
    isolated = f"/usr/bin/env -u {VENV_LAUNCHER} {python} -I"
    return f"exec {isolated} -c 'import sys; exec(sys.stdin.buffer.read({_UNPACK.stat().st_size}))'"


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
                raise HostUnreachable(f"{up.alias}: nothing of what is sent was taken for {STALLED_S:g} s")
            if os.fstat(said.fileno()).st_size > _MOST_SAID_BYTES:
                ended.cancel()
                raise HostUnreachable(f"{up.alias}: what should take the bundle says too much")
        progress(total, total)
        return ended.result()
    finally:
        passenger.close()


def _answer(said: IO[bytes], mark: str) -> str | None:
    end = said.seek(0, os.SEEK_END)
    said.seek(max(0, end - _MOST_BYTES))
    for line in reversed(said.read().decode(errors="replace").splitlines()):
        if line.startswith(mark):
            return line[len(mark) :].strip()
    return None


def _object(answer: str) -> dict[str, Any] | None:
    try:
        told = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None
