"""Files that an enemy would like to see imported. Each pickle would make the file `MARKER` where it is loaded.

As a program (`python -m tests.unit.hostile.imports FOLDER`) it reads each and prints what came of it as JSON; with
`--write` it makes the corpus in FOLDER anew.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import signal
import struct
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.formats import base
from tests.memory import peak_resident_bytes

CORPUS = Path(__file__).parents[2] / "golden" / "hostile"
MARKER = "an-import-ran-code"
ADDRESS_SPACE_BYTES = 12 << 30  # torch alone maps several
RESIDENT_BYTES = 1 << 30
SECONDS = 30


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARKER}",)


class Evaluated:
    """The same without the module os."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({MARKER!r}, 'w').close()",)


def write(folder: Path) -> None:
    """The corpus."""
    for form in ("pt", "safetensors", "huggingface", "dcp"):
        (folder / form).mkdir(parents=True, exist_ok=True)
    _write_pt(folder / "pt")
    _write_safetensors(folder / "safetensors")
    _write_huggingface(folder / "huggingface")
    _write_dcp(folder / "dcp")


def _write_pt(folder: Path) -> None:
    bodies = {
        "system": pickle.dumps({"model": Payload()}, protocol=2),
        "eval": pickle.dumps({"w": Evaluated()}, protocol=2),
        "builtins": b"\x80\x02c__builtin__\nexec\n(Vopen('" + MARKER.encode() + b"','w')\ntR.",
        "nested": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "bytes-of-an-exabyte": b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"abc.",
        "memo-of-an-exabyte": b"\x80\x02]r\xff\xff\xff\xff.",
        "empty": b"",
        "storage-of-an-exabyte": _storage("FloatStorage", 1 << 58, (1 << 58,)),
        "tensor-past-its-storage": _storage("FloatStorage", 4, (1 << 40,)),
        "tensor-of-another-type": _storage("system", 4, (4,)),
    }
    for name, body in bodies.items():
        (folder / f"{name}.pt").write_bytes(_archive({"data.pkl": body, "data/0": bytes(16), "version": b"3\n"}))
        if name in ("system", "eval", "builtins"):
            (folder / f"{name}-bare.pt").write_bytes(body)
    (folder / "climbing.pt").write_bytes(_archive({"../../data.pkl": bodies["system"], "data.pkl": bodies["system"]}))
    (folder / "half.pt").write_bytes(_archive({"data.pkl": bodies["system"]})[:100])
    (folder / "bomb.pt").write_bytes(_archive({"data.pkl": bytes(40_000_000), "version": b"3\n"}, packed=True))


def _storage(kind: str, count: int, shape: tuple[int, ...]) -> bytes:
    """A pickle of {"w": tensor} as torch writes it, that lies about its sizes."""
    out = io.BytesIO()
    out.write(b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage")
    out.write(f"ctorch\n{kind}\n".encode() + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu")
    out.write(
        pickle.dumps(count, 2)[2:-1]
        + b"tQK\x00("
        + b"".join(pickle.dumps(n, 2)[2:-1] for n in shape)
        + b"t(K\x01t\x89}tRs."
    )
    return out.getvalue()


def _archive(members: dict[str, bytes], *, packed: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, raw in members.items():
            archive.writestr(
                zipfile.ZipInfo(f"archive/{name}"), raw, compress_type=None if not packed else zipfile.ZIP_DEFLATED
            )
    return out.getvalue()


def _tensors(header: bytes, data: bytes = bytes(16), length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _write_safetensors(folder: Path) -> None:
    def entry(**change: Any) -> bytes:
        return json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **change}}).encode()

    files = {
        "header-of-an-exabyte": _tensors(b"{}", length=1 << 60),
        "header-past-the-end": _tensors(entry(), length=4000),
        "short": b"\x01",
        "empty": b"",
        "deep": _tensors(b"[" * 200_000),
        "no-object": _tensors(b"[1]"),
        "no-entry": _tensors(b'{"w":1}'),
        "twice": _tensors(b'{"w":' + entry()[5:-1] + b',"w":' + entry()[5:-1] + b"}"),
        "type": _tensors(entry(dtype="PICKLE")),
        "type-no-text": _tensors(entry(dtype=["F32"])),
        "shape-negative": _tensors(entry(shape=[-4])),
        "shape-bool": _tensors(entry(shape=[True, 4])),
        "shape-exabyte": _tensors(entry(shape=[1 << 58], data_offsets=[0, 1 << 60])),
        "shape-overflow": _tensors(entry(shape=[1 << 59] * 64)),
        "shape-long": _tensors(entry(shape=[1] * 100_000)),
        "offsets-back": _tensors(entry(data_offsets=[16, 0])),
        "offsets-three": _tensors(entry(data_offsets=[0, 16, 16])),
        "offsets-outside": _tensors(entry(data_offsets=[16, 32])),
        "overlap": _tensors(
            json.dumps({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in "ab"}).encode()
        ),
        "hole": _tensors(entry(shape=[3], data_offsets=[4, 16])),
        "tail": _tensors(entry(), bytes(17)),
        "number": _tensors(b'{"w":' + b"9" * 100_000 + b"}"),
        "not-text": _tensors(b"\xff\xfe{}"),
    }
    for name, raw in files.items():
        (folder / f"{name}.safetensors").write_bytes(raw)


def _write_huggingface(folder: Path) -> None:
    indices: dict[str, Any] = {
        "climbing": {"weight_map": {"w": "../../safetensors/tail.safetensors"}},
        "absolute": {"weight_map": {"w": "/etc/passwd"}},
        "missing": {"weight_map": {"w": "model-00001-of-00002.safetensors"}},
        "folder": {"weight_map": {"w": "."}},
        "no-text": {"weight_map": {"w": [1]}},
        "nothing": {},
        "list": [1],
        "nul": {"weight_map": {"w": "a\0.safetensors"}},
    }
    for name, index in indices.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_dcp(folder: Path) -> None:
    from torch.distributed.checkpoint import metadata as torchs
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    def described(size: Any = (4,), offsets: Any = (0,), sizes: Any = (4,), **place: Any) -> bytes:
        import torch

        chunk = torchs.ChunkStorageMetadata(offsets, sizes)
        held = torchs.TensorStorageMetadata(torchs.TensorProperties(torch.float32), size, [chunk])
        where = _StorageInfo(**{"relative_path": "__0_0.distcp", "offset": 0, "length": 100, **place})
        entries: Any = {"w": held}
        index: Any = torchs.MetadataIndex("w", offsets if isinstance(offsets, tuple) else None)
        return pickle.dumps(torchs.Metadata(entries, {"w": ("w",)}, {index: where}))

    enemy = zipfile_of = _archive({"data.pkl": pickle.dumps({"w": Payload()}, protocol=2), "version": b"3\n"})
    files = {
        "system": pickle.dumps(Payload()),
        "eval": pickle.dumps({"a": Evaluated()}),
        "payload-in-a-shard": described(length=len(zipfile_of)),
        "climbing": described(relative_path="../pt/system.pt"),
        "absolute": described(relative_path="/etc/passwd"),
        "past-the-end": described(length=1 << 60),
        "negative": described(offset=-5),
        "no-path": described(relative_path=None),
        "exabyte": described(size=(1 << 47,), sizes=(1 << 47,)),
        "shape-of-text": described(size=("a",)),
        "shards-leave-a-gap": described(size=(8,)),
        "other-axes": described(offsets=(0, 0), sizes=(2, 2)),
        "deep": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        "number": pickle.dumps(5),
        "empty": b"",
        "getattr": b"\x80\x02c__builtin__\ngetattr\n(cos\nX\x06\x00\x00\x00systemtR(Xtouch x\ntR.",
        "getattr-of-a-type": b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\ntuple\nX\x09\x00\x00\x00__class__tR.",
        "torch-load": b"\x80\x02ctorch\nload\n(X\x01\x00\x00\x00xtR.",
        "dotted": b"\x80\x04\x8c\x05torch\x8c\x0ehub.load_state\x93.",
    }
    for name, raw in files.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / ".metadata").write_bytes(raw)
        (folder / name / "__0_0.distcp").write_bytes(enemy if name == "payload-in-a-shard" else bytes(200))


def cases() -> list[tuple[str, Path]]:
    """(format, file or folder) of the corpus."""
    return [(form.name, path) for form in sorted(CORPUS.iterdir()) for path in sorted(form.iterdir())]


class TooLong(BaseException):
    """A case took more than `SECONDS`."""


def _too_long(_number: int, _frame: object) -> None:
    raise TooLong


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    signal.signal(signal.SIGALRM, _too_long)
    found = []
    for form, path in cases():
        began_s = time.monotonic()
        signal.alarm(SECONDS)
        try:
            base.named(form).read(path)
            said, kind = "", "read"
        except (HoldfastError, OSError) as error:
            said, kind = str(error), type(error).__name__
        except (Exception, TooLong) as error:
            said, kind = repr(error)[:500], f"UNEXPECTED {type(error).__name__}"
        signal.alarm(0)
        found.append({"case": f"{form}/{path.name}", "kind": kind, "said": said, "seconds": time.monotonic() - began_s})
    peak = peak_resident_bytes()
    print(json.dumps({"outcomes": found, "peak_bytes": peak}))


if __name__ == "__main__":
    write(Path(sys.argv[2])) if sys.argv[1:2] == ["--write"] else main()
