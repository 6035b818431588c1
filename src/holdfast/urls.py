"""Where a mirror may lie: what a URL must be before anybody is asked. Pure."""

from __future__ import annotations

import difflib
import re
from urllib.parse import urlsplit

from holdfast.errors import UsageError

SCHEMES = ("s3", "oss", "gs", "az", "file")  # each has its module in `stores`
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}")  # the longest of all: Google's, with dots


def scheme_of(url: str) -> str:
    """The scheme of `url`. Raises UsageError for one that no module knows, for what cannot be a bucket or a path."""
    if url.startswith("/"):
        return "file"
    parts = urlsplit(url)
    if "://" not in url or not parts.scheme:
        raise UsageError(f"{url!r} is neither a URL nor an absolute path", hint="s3://BUCKET/PATH, or /mnt/nas/PATH")
    if parts.scheme not in SCHEMES:
        near = difflib.get_close_matches(parts.scheme, SCHEMES, n=1, cutoff=0.5)
        said = f"; did you mean {near[0]}://?" if near else ""
        raise UsageError(
            f"no store is called {parts.scheme}://{said}", hint=f"one of {', '.join(f'{one}://' for one in SCHEMES)}"
        )
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise UsageError(f"{url} needs an absolute path", hint="file:///mnt/nas/PATH")
        return parts.scheme
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"the {parts.scheme}:// URL holds more than a bucket and a path", hint="credentials go into the environment"
        )
    _check_bucket(url, parts.scheme, parts.netloc, parts.path)
    return parts.scheme


def _check_bucket(url: str, scheme: str, bucket: str, path: str) -> None:
    if not bucket:
        raise UsageError(f"{url} names no bucket", hint=f"{scheme}://BUCKET/PATH")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{url}: {bucket!r} cannot be a bucket's name",
            hint=f"letters, digits, '.', '_' and '-': {scheme}://BUCKET/PATH",
        )
    if any(part in ("", ".", "..") or not part.isprintable() for part in path.strip("/").split("/") if path.strip("/")):
        raise UsageError(f"{url}: a path goes from name to name", hint="no '//', '.' or '..' in it")
