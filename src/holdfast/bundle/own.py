"""This very holdfast as a wheel: the same bytes wherever the same files are, in an editable install too."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import zipfile

from holdfast.bundle import sources
from holdfast.errors import HoldfastError

_SHAPE = "Wheel-Version: 1.0\nGenerator: holdfast\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_THEN = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip knows


def distribution() -> importlib.metadata.Distribution:
    """What was installed. Raises HoldfastError where holdfast runs without having been."""
    try:
        return importlib.metadata.distribution("holdfast")
    except importlib.metadata.PackageNotFoundError:
        raise HoldfastError(
            "this holdfast was not installed, so nobody knows what it needs on a node", hint="pip install holdfast"
        ) from None


def wheel() -> tuple[str, bytes]:
    """Its name and its bytes. Stored, not deflated: what deflate makes differs from one zlib to the next."""
    installed = distribution()
    stem = f"holdfast-{installed.version}"
    files = {f"holdfast/{path.relative_to(sources.PACKAGE).as_posix()}": path.read_bytes() for path in sources.paths()}
    about = {name: installed.read_text(name) for name in ("METADATA", "entry_points.txt")}
    files |= {f"{stem}.dist-info/{name}": text.encode() for name, text in {**about, "WHEEL": _SHAPE}.items() if text}
    files[f"{stem}.dist-info/RECORD"] = _record(files, f"{stem}.dist-info/RECORD")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _THEN)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, files[name])
    return f"{stem}-py3-none-any.whl", out.getvalue()


def _record(files: dict[str, bytes], itself: str) -> bytes:
    rows = [f"{name},sha256={_digest(files[name])},{len(files[name])}" for name in sorted(files)]
    return "\n".join([*rows, f"{itself},,", ""]).encode()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
