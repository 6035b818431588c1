"""Checkpoint folders as an enemy would leave them: each case ruins the newest of two checkpoints, hashes included.

Without torch. As a program (`python -m tests.unit.hostile.folders BASE WORK`) it tries every case in BASE's image under
a limit of memory and time, and prints what came of each as JSON.
"""

from __future__ import annotations

import copy
import json
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from holdfast.checkpoint import canonical, load, manifest, pack, reading
from holdfast.checkpoint.pack import Layout, Record
from holdfast.commands.ckpt import ls
from holdfast.errors import HoldfastError
from tests.memory import peak_resident_bytes

ADDRESS_SPACE_BYTES = 3 << 29
RESIDENT_BYTES = 700 << 20
SECONDS = 20
Tree = dict[str, Any]
Case = Callable[[Path], None]

CASES: dict[str, Case] = {}


def newest(root: Path) -> Path:
    return max(manifest.folder(root).iterdir())


def put(root: Path, raw: bytes) -> None:
    """In place of the newest manifest, under a name that is right for it."""
    path = newest(root)
    path.unlink()
    path.with_name(f"{path.name[:16]}{blake3(raw).hexdigest()}.json").write_bytes(raw)


def tree_of(root: Path) -> Tree:
    found: Tree = json.loads(newest(root).read_bytes())
    return found


def rewritten(name: str) -> Callable[[Callable[[Tree], Any]], None]:
    """A case that changes the manifest's JSON and leaves everything else right."""

    def register(change: Callable[[Tree], Any]) -> None:
        def case(root: Path) -> None:
            tree = tree_of(root)
            change(tree)
            put(root, canonical.encode(tree))

        CASES[name] = case

    return register


def chunk(tree: Tree) -> Tree:
    found: Tree = tree["ranks"][0]["chunks"][0]
    return found


def tensor(tree: Tree) -> Tree:
    found: Tree = chunk(tree)["tensors"][0]
    return found


_VALUES: dict[str, tuple[Callable[[Tree], Tree], str, list[Any]]] = {
    "pack-name": (lambda t: t["packs"][0], "name", ["../../etc/passwd", "٠" * 64, "A" * 64, "a/" * 32, None, ["a"]]),
    "pack-bytes": (lambda t: t["packs"][0], "bytes", [1 << 60, -4096, 0, True, 1e300, "94208", 1 << 4000]),
    "chunk-offset": (chunk, "offset", [1 << 62, -4096, 1, 4096.0, None, 1 << 5000]),
    "chunk-pack": (chunk, "pack", [-1, 99, True, None, 0.0]),
    "chunk-bytes": (chunk, "bytes", [1 << 62, (48 << 20) + 1, -1, None, "1"]),
    "chunk-id": (chunk, "id", ["0" * 64, "../x", 7, None]),
    "chunk-kind": (chunk, "kind", ["os.system", None, 3]),
    "tensor-shape": (tensor, "shape", [[1 << 53] * 64, [-1], [1] * 65, [1.5], "3", None, [True]]),
    "tensor-global": (tensor, "global_shape", [[1 << 53], [1 << 53] * 64, [0], []]),
    "tensor-index": (tensor, "index", [[1 << 53], [-1], [1], []]),
    "tensor-offset": (tensor, "offset", [1, -64, 1 << 60, None]),
    "tensor-bytes": (tensor, "bytes", [0, 1, 1 << 60, -4]),
    "tensor-dtype": (tensor, "dtype", ["os.system", "float999", "__class__", "", 4, "float64", "\u202efloat32"]),
    "tensor-name": (tensor, "name", ["x" * 10_001, 4, None, ["a"]]),
    "ranks": (lambda t: t, "ranks", [[], {}, None, [None], [{}]]),
    "packs": (lambda t: t, "packs", [[], None, {"a": 1}, [None]]),
    "version": (lambda t: t, "version", [2, "1", 1.0, True, None, 1 << 300]),
    "position": (lambda t: t, "term", [-1, 1 << 60, "1", None, True]),
    "parent": (lambda t: t, "parent", [{"term": -1, "sequence": 1}, [], "x", {"term": 1}]),
    "base": (lambda t: t, "base", [{"term": 1 << 80, "sequence": 1}, 5, {}]),
    "step": (lambda t: t["ranks"][0]["table"], "step", [-1, 1e99, None, 1 << 70]),
    "time": (lambda t: t["ranks"][0]["table"], "time_s", ["now", None, True]),
    "world": (lambda t: t["ranks"][0]["table"], "world", [0, 2, 1 << 40, None]),
}  # fmt: skip


def _set(where: Callable[[Tree], Tree], key: str, value: Any) -> Callable[[Tree], None]:
    def change(tree: Tree) -> None:
        where(tree)[key] = copy.deepcopy(value)

    return change


for _name, (_where, _key, _values) in _VALUES.items():
    for _index, _value in enumerate(_values):
        rewritten(f"{_name}-{_index}")(_set(_where, _key, _value))


@rewritten("overlapping-boxes")
def _(tree: Tree) -> None:
    chunk(tree)["tensors"].append(copy.deepcopy(tensor(tree)))


@rewritten("two-types-for-one-name")
def _(tree: Tree) -> None:
    other = copy.deepcopy(tensor(tree))
    other.update(dtype="int32")
    chunk(tree)["tensors"].append(other)


@rewritten("box-that-is-missing")
def _(tree: Tree) -> None:
    tensor(tree)["global_shape"][0] += 1


@rewritten("ten-thousand-boxes-that-nothing-separates")
def _(tree: Tree) -> None:
    one = tensor(tree)
    side = [4, 4]
    box = {**one, "dtype": "uint8", "shape": [2, 2], "global_shape": [20_000, 4], "index": [0, 0], "bytes": 4}
    chunk(tree)["tensors"] = [{**box, "index": [i, i % 3]} for i in range(10_000)] + [{**box, "index": side}]


@rewritten("a-chunk-named-ten-thousand-times")
def _(tree: Tree) -> None:
    one = chunk(tree)
    row = {**tensor(tree), "global_shape": [10_000, *tensor(tree)["shape"]], "shape": [1, *tensor(tree)["shape"]]}
    tree["ranks"][0]["chunks"] = [
        {
            **one,
            "tensors": [
                {**row, "index": [n, *(0 for _ in tensor(tree)["shape"])], "global_shape": [10_001, *row["shape"][1:]]}
            ],
        }
        for n in range(10_000)
    ]


@rewritten("a-million-ranks")
def _(tree: Tree) -> None:
    tree["ranks"] = [0] * 1_000_000


@rewritten("five-thousand-ranks-of-another-world")
def _(tree: Tree) -> None:
    rank = tree["ranks"][0]
    tree["ranks"] = [{"table": rank["table"], "chunks": []}] * 5_000


def spelled(name: str, change: Callable[[bytes], bytes]) -> None:
    """A case of bytes that are no canonical JSON."""
    CASES[name] = lambda root: put(root, change(newest(root).read_bytes()))


spelled("nested-a-hundred-thousand-deep", lambda raw: b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
spelled("lists-a-million-deep", lambda raw: raw.replace(b'"reason":"test"', b'"reason":' + b"[" * 1_000_000))
spelled("a-number-of-a-million-digits", lambda raw: raw.replace(b'"epoch":2', b'"epoch":' + b"9" * 1_000_000))
spelled("a-key-twice", lambda raw: raw[:-1] + b',"version":1}')
spelled("white-space", lambda raw: raw + b"\n")
spelled("infinity", lambda raw: raw.replace(b'"epoch":2', b'"epoch":Infinity'))
spelled("a-float-beyond-all", lambda raw: raw.replace(b'"epoch":2', b'"epoch":1e999'))
spelled("a-mark-of-byte-order", lambda raw: b"\xef\xbb\xbf" + raw)
spelled("utf-16", lambda raw: raw.decode().encode("utf-16"))
spelled("empty", lambda raw: b"")
spelled("zeros", lambda raw: bytes(100_000))
spelled("a-list", lambda raw: b"[1]")
spelled("half", lambda raw: raw[: len(raw) // 2])


def packed(name: str) -> Callable[[Callable[[bytes, Layout], bytes]], None]:
    """A case in which the newest checkpoint's pack is another, which the manifest names rightly."""

    def register(change: Callable[[bytes, Layout], bytes]) -> None:
        def case(root: Path) -> None:
            tree = tree_of(root)
            path = pack.path(root, tree["packs"][0]["name"])
            raw = path.read_bytes()
            rows = json.loads(raw[-48 - 4096 :].split(b"\0HLFPACK1")[0].lstrip(b"\0").split(b"\0")[0])["records"]
            records = [
                Record(id=r["id"], offset=r["offset"], raw_bytes=r["raw"], stored_bytes=r["stored"], codec=r["codec"])
                for r in rows
            ]
            made = change(raw, Layout(tuple(records)))
            entry = tree["packs"][0]
            entry["name"], entry["bytes"] = made[-32:].hex(), len(made)
            into = pack.path(root, entry["name"])
            into.parent.mkdir(exist_ok=True)
            into.write_bytes(made)
            put(root, canonical.encode(tree))

        CASES[name] = case

    return register


def footed(body: bytes, footer: bytes) -> bytes:
    """`body` with `footer` and the trailer that belongs to it."""
    tail = -(-(len(footer) + 48) // 4096) * 4096
    trailer = b"HLFPACK1" + len(footer).to_bytes(8, "little") + blake3(footer).digest()
    return body + footer.ljust(tail - 48, b"\0") + trailer


def _rows(layout: Layout) -> Tree:
    found: Tree = json.loads(layout.footer)
    return found


for _name, _fields in {
    "record-of-an-exabyte": {"raw": 1 << 60},
    "record-before-the-file": {"offset": -4096},
    "record-of-an-unknown-codec": {"codec": 3},
    "record-compressed-to-more": {"codec": 4, "stored": 1 << 40},
    "record-that-is-a-bool": {"codec": False},
    "record-without-a-hash": {"id": "../../etc/passwd"},
    "record-that-overlaps": {"offset": 4096},
}.items():

    def _with(fields: Tree) -> Callable[[bytes, Layout], bytes]:
        def change(raw: bytes, layout: Layout) -> bytes:
            rows = _rows(layout)
            rows["records"][0].update(fields)
            return footed(raw[: layout.footer_at], canonical.encode(rows))

        return change

    packed(_name)(_with(_fields))


@packed("footer-longer-than-the-file")
def _(raw: bytes, layout: Layout) -> bytes:
    whole = footed(raw[: layout.footer_at], layout.footer)
    return whole[:-40] + (1 << 62).to_bytes(8, "little") + whole[-32:]


@packed("footer-nested-deep")
def _(raw: bytes, layout: Layout) -> bytes:
    return footed(raw[: layout.footer_at], b"[" * 1_000_000)


@packed("footer-of-a-million-records")
def _(raw: bytes, layout: Layout) -> bytes:
    return footed(raw[: layout.footer_at], canonical.encode({"records": [0] * 1_000_000, "version": 1}))


@packed("pack-of-a-later-version")
def _(raw: bytes, layout: Layout) -> bytes:
    return footed(raw[: layout.footer_at], canonical.encode({**_rows(layout), "version": 99}))


def bomb(content_bytes: int, stated_bytes: int) -> Callable[[bytes, Layout], bytes]:
    """The first record becomes a zstd frame of `content_bytes` zeros that says it holds `stated_bytes`."""

    def change(raw: bytes, layout: Layout) -> bytes:
        import zstandard

        frame = zstandard.ZstdCompressor(write_content_size=content_bytes == stated_bytes).compress(
            bytes(content_bytes)
        )
        first = layout.records[0]
        record = Record(id=first.id, offset=0, raw_bytes=first.raw_bytes, stored_bytes=len(frame), codec=1)
        body = record.header().ljust(4096, b"\0") + frame.ljust(record.padded_bytes, b"\0")
        return footed(body, Layout((record,)).footer)

    return change


packed("bomb-that-says-its-size")(bomb(1 << 29, 1 << 29))
packed("bomb-that-does-not")(bomb(1 << 29, 0))


def ruined(name: str, path: str, raw: bytes) -> None:
    """A case of a small file beside the manifests; `path` is a pattern."""

    def case(root: Path) -> None:
        for found in list(root.glob(path)) or [root / path]:
            found.parent.mkdir(exist_ok=True)
            found.write_bytes(raw)

    CASES[name] = case


for _name, _raw in {"deep": b"[" * 200_000, "empty": b"", "binary": bytes(range(256)), "number": b"1" * 5000}.items():
    for _what, _path in {
        "lease": "leases/*",
        "pin": "pins/000001-00000002.json",
        "format": "format.json",
        "latest": "latest.json",
    }.items():
        ruined(f"{_what}-{_name}", _path, _raw)
ruined("latest-that-climbs", "latest.json", canonical.encode_checked({"manifest": "../../../etc/passwd"}))
ruined("format-of-the-future", "format.json", canonical.encode_checked({"format": "holdfast", "version": 1 << 50}))

# What is no damage to the checkpoints: they load as if nothing were there.
HARMLESS = {name for name in CASES if name.startswith(("lease-", "pin-", "latest-"))} | {
    f"format-{kind}" for kind in ("deep", "empty", "binary", "number")
}


def tried(root: Path) -> str:
    """Everything a reader does with the newest checkpoint; what was wrong with it, or "" when nothing was."""
    infos = load.checkpoints(root)
    ls.table(infos, 0.0)
    load.problems(root)
    if not infos or infos[-1].step != 20:
        return "; ".join(load.problems(root))
    info = infos[-1]
    wrong = load.verify(root, info)
    with reading.open_checkpoint(root, info) as checkpoint:
        for part in checkpoint.stream(checkpoint.tensors.values()):
            part.into.release()
    return "; ".join(wrong)


def outcomes(base: Path, work: Path) -> Iterator[dict[str, Any]]:
    for name, case in CASES.items():
        root = work / name
        shutil.copytree(base, root)
        case(root)
        began_s = time.monotonic()
        signal.alarm(SECONDS)
        try:
            said, kind = tried(root), ""
        except (HoldfastError, OSError) as error:
            said, kind = str(error), type(error).__name__
        except (Exception, TooLong) as error:
            said, kind = repr(error)[:500], f"UNEXPECTED {type(error).__name__}"
        signal.alarm(0)
        fell_back = _falls_back(root) if not kind.startswith("UNEXPECTED") else False
        yield {
            "case": name,
            "kind": kind,
            "said": said,
            "seconds": time.monotonic() - began_s,
            "older_is_found": fell_back,
        }
        shutil.rmtree(root)


def _falls_back(root: Path) -> bool:
    try:
        return any(info.step == 10 and not load.verify(root, info) for info in load.checkpoints(root))
    except HoldfastError:
        return False


class TooLong(BaseException):
    """A case took more than `SECONDS`."""


def _too_long(_number: int, _frame: object) -> None:
    raise TooLong


def main() -> None:
    signal.signal(signal.SIGALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    found = list(outcomes(Path(sys.argv[1]), Path(sys.argv[2])))
    peak = peak_resident_bytes()
    print(json.dumps({"outcomes": found, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
