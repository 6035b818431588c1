"""A bucket, over obstore: with our own retries, our own deadline and our own look at what arrived.

`rclone serve s3` sends the asked range with a Content-Range header, but with status 200 in place of 206 (its gofakes3
never sets one), and obstore refuses that as "non-partial". Other servers ignore Range altogether. Either way the object
is read whole from then on and cut here: objects are packs of 64 MiB at most. `parts` tells that to who wants several.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore import exceptions

from holdfast.errors import StoreRefused
from holdfast.fsio import Bytes
from holdfast.stores import refusal
from holdfast.stores.base import Entry
from holdfast.stores.retry import Patience, Transient, retrying

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

Out = TypeVar("Out")

# A request as a whole may take as long as 64 MiB take at 128 KiB/s; what does not even connect is given up sooner.
CLIENT: ClientConfig = {"timeout": timedelta(seconds=600), "connect_timeout": timedelta(seconds=10)}
MOST_BYTES = 1 << 29  # of an object: packs have 64 MiB at most, the code of a run 256 MiB
MOST_KEYS = 1_000_000  # below one prefix: 64 TB of packs
NO_RETRIES: RetryConfig = {"max_retries": 0}  # ours are seen, counted and bounded
_PANIC = "pyo3_runtime"  # where PanicException lives: no module that one could import, and no Exception either
_BROKE_DOWN = "is something odd in the URL, the endpoint, the region or the keys?"


class RemoteStore:
    """One bucket and prefix. Safe to use from several threads."""

    def __init__(self, url: str, client: ObjectStore, patience: Patience) -> None:
        self.url = url
        self._client = client
        self._patience = patience
        self._rng = random.Random()  # noqa: S311 - pauses
        self.parts = True

    def put(self, key: str, data: Bytes, *, create: bool = False) -> None:
        """One PUT, however large: what is there is whole. MD5 when the store's ETag is one, else read back."""

        def attempt(failures: int) -> None:
            try:
                said = obstore.put(
                    self._client, key, data, mode="create" if create else "overwrite", use_multipart=False
                )
            except exceptions.AlreadyExistsError as error:
                if failures and self.get(key) == bytes(data):  # an earlier try arrived, only its answer was lost
                    return
                raise FileExistsError(key) from error
            self._verify(key, data, (said["e_tag"] or "").strip('"'))

        self._retrying(attempt)

    def _verify(self, key: str, data: Bytes, etag: str) -> None:
        """Raises Transient when the store holds something else than was sent.

        An ETag that equals our MD5 was computed from what arrived. Any other (encrypted buckets, GCS, Azure) says
        nothing, and checksum headers are ignored by many servers: then the object itself is compared.
        """
        if etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return
        if self._get(key) != bytes(data):
            raise Transient(f"{key} reads back differently than sent")

    def get(self, key: str) -> bytes:
        """All of an object."""
        return self._retrying(lambda _: self._get(key))

    def _get(self, key: str) -> bytes:
        return _body(obstore.get(self._client, key), MOST_BYTES, key)

    def get_range(self, key: str, offset: int, size: int) -> bytes:
        """A part of an object, by a ranged GET where the server knows how."""
        if self.parts:
            try:
                return self._retrying(lambda _: self._get_range(key, offset, size))
            except _NotPartial:
                self.parts = False
        return self.get(key)[offset : offset + size]

    def _get_range(self, key: str, offset: int, size: int) -> bytes:
        if not size:
            return b""
        return _body(obstore.get(self._client, key, options={"range": (offset, offset + size)}), size, key)

    def list(self, prefix: str) -> dict[str, int]:
        """Keys below `prefix`."""

        def all_pages(_: int) -> dict[str, int]:
            found: dict[str, int] = {}
            for page in obstore.list(self._client, prefix):
                found.update((entry["path"], entry["size"]) for entry in page)
                if len(found) > MOST_KEYS:
                    raise StoreRefused(f"{self.url} lists more than {MOST_KEYS} objects", hint="is it the right place?")
            return found

        return dict(sorted(self._retrying(all_pages).items()))

    def head(self, key: str) -> Entry | None:
        """Length and time."""
        try:
            found = self._retrying(lambda _: obstore.head(self._client, key))
        except FileNotFoundError:
            return None
        return Entry(found["size"], found["last_modified"].timestamp())

    def delete(self, key: str) -> None:
        """Remove."""

        def attempt(_: int) -> None:
            try:
                obstore.delete(self._client, key)
            except FileNotFoundError as error:  # GCS and Azure say so; a bucket that is not there says it too
                _raise_unless_key(error)

        self._retrying(attempt)

    def _retrying(self, call: Callable[[int], Out]) -> Out:
        def attempt(failures: int) -> Out:
            try:
                return call(failures)
            except (exceptions.BaseError, FileNotFoundError, PermissionError) as error:
                _raise_unless_key(error)
                if isinstance(error, FileNotFoundError):
                    raise
                raise _understood(error, self.url) from error
            except BaseException as error:
                if type(error).__module__ != _PANIC:
                    raise
                raise StoreRefused(f"{self.url}: the client broke down", hint=_BROKE_DOWN) from error

        try:
            return retrying(attempt, self._patience, self._rng)
        except Transient as error:
            why = refusal.read(str(error.__cause__)) if error.__cause__ is not None else None
            raise (why.error(self.url) if why else StoreRefused(f"{self.url}: {error}")) from error


def _body(result: GetResult, most_bytes: int, key: str) -> bytes:
    """What the store sends, and no more than it may: a store that lies must not fill our memory."""
    data = bytearray()
    for piece in result.stream():
        data += memoryview(piece)
        if len(data) > most_bytes:
            raise StoreRefused(f"the store sends more than the {most_bytes} bytes that {key} may have")
    return bytes(data)


class _NotPartial(Exception):
    """The server did not answer 206 to a Range."""


def _raise_unless_key(error: Exception) -> None:
    """Nothing when a mere key is missing; a missing bucket is another matter."""
    if isinstance(error, FileNotFoundError) and refusal.read(str(error)).code in ("NoSuchBucket", "ContainerNotFound"):
        raise exceptions.GenericError(str(error)) from error


def _understood(error: Any, url: str) -> Exception:
    text = str(error)
    if "non-partial" in text or "NotPartial" in text:
        return _NotPartial(text)
    why = refusal.read(text)
    return Transient(why.why) if why.transient else why.error(url)
