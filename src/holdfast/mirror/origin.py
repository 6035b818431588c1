"""What a machine that has nothing needs to begin: the run's plan and run file, its code, and, when asked for, its logs.

`run/plan.json`, `run/holdfast.yaml`, `run/code.json` and `run/code-<blake3>.tar`. No secret is in any of them.
Logs go in parts that are never rewritten: `logs/NAME/OFFSET`, at most 8 MiB each.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from holdfast.checkpoint import canonical
from holdfast.errors import NoValidCheckpoint, StoreRefused
from holdfast.runs import RunDir
from holdfast.stores import Store

MAX_CODE_BYTES = 256 << 20
LOG_PART_BYTES = 8 << 20
_FILES = ("plan.json", "holdfast.yaml")


class Origin:
    """A run as it was begun, read from a mirror."""

    def __init__(self, store: Store) -> None:
        """Raises NoValidCheckpoint when there is no run, StoreRefused."""
        self._store = store
        try:
            self.plan: dict[str, Any] = json.loads(store.get("run/plan.json"))
            self.spec = store.get("run/holdfast.yaml").decode()
            self._code: dict[str, Any] = json.loads(store.get("run/code.json"))
        except (FileNotFoundError, ValueError) as error:
            hint = "is that the whole URL, as in the run file?"
            raise NoValidCheckpoint(store.url, said=f"{store.url} holds no run: {error}", hint=hint) from error

    @property
    def has_code(self) -> bool:
        """Whether a snapshot of the code is there; a run in place has none."""
        return bool(self._code.get("tar"))

    def unpack(self, folder: Path) -> None:
        """The code into `folder`. Raises StoreRefused when it is not what was put there."""
        key = f"run/code-{self._code['tar']}.tar"
        try:
            raw = self._store.get(key)
        except FileNotFoundError as error:
            raise StoreRefused(f"{self._store.url} has no {key}", hint="give the code: cd CODE, -- COMMAND") from error
        if canonical.digest(raw) != self._code["tar"]:
            raise StoreRefused(f"{self._store.url}: {key} is damaged", hint="give the code: cd CODE, -- COMMAND")
        with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(folder, filter="data")
            else:
                archive.extractall(folder, members=[one for one in archive if _is_harmless(one)])  # noqa: S202


def _is_harmless(member: tarfile.TarInfo) -> bool:
    """For a Python without filters: names that stay inside, and no devices."""
    inside = not member.name.startswith("/") and ".." not in Path(member.name).parts
    return inside and (member.isfile() or member.isdir())


def send(run: RunDir, store: Store) -> str | None:
    """Put what is not there yet; a sentence when the code is too large to go along. Raises StoreRefused, OSError."""
    too_large = None
    code = json.loads((run.root / "code.json").read_bytes()) if (run.root / "code.json").exists() else {}
    if run.code.is_dir():
        size = sum(path.stat().st_size for path in run.code.rglob("*") if path.is_file() and not path.is_symlink())
        if size <= MAX_CODE_BYTES:
            raw = _tar(run.code)
            code["tar"] = canonical.digest(raw)
            _put_new(store, f"run/code-{code['tar']}.tar", raw)
        else:
            too_large = f"the code has {size} bytes, more than the {MAX_CODE_BYTES} that go to a mirror"
    _put_new(store, "run/code.json", json.dumps(code, indent=1).encode())
    for name in _FILES:
        if (run.root / name).exists():
            _put_new(store, f"run/{name}", (run.root / name).read_bytes())
    return too_large


def _put_new(store: Store, key: str, data: bytes) -> None:
    found = store.head(key)
    if found is None or found.size_bytes != len(data) or store.get(key) != data:
        store.put(key, data)


def _tar(folder: Path) -> bytes:
    """The same files give the same bytes."""
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_socket():
                continue
            member = archive.gettarinfo(path, arcname=path.relative_to(folder).as_posix())
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            if member.isfile():
                with path.open("rb") as file:
                    archive.addfile(member, file)
            else:
                archive.addfile(member)
    return into.getvalue()


def send_logs(run: RunDir, store: Store, sent: dict[str, int]) -> None:
    """Put what was appended to output, journal and records since. `sent`: bytes of each that are there; updated.

    What is already there is found by listing when `sent` is empty. Raises StoreRefused, OSError.
    """
    if not sent:
        for key, size in store.list("logs/").items():
            name, _, offset = key.removeprefix("logs/").rpartition("/")
            if offset.isdecimal():
                sent[name] = max(sent.get(name, 0), int(offset) + size)
    for path in [run.output, run.journal, run.archiver_log, *sorted(run.records.glob("*.jsonl"))]:
        if path.exists():
            _send_tail(path, path.relative_to(run.root).as_posix(), store, sent)


def _send_tail(path: Path, name: str, store: Store, sent: dict[str, int]) -> None:
    with path.open("rb") as file:
        file.seek(sent.get(name, 0))
        while data := file.read(LOG_PART_BYTES):
            at = sent.get(name, 0)
            store.put(f"logs/{name}/{at:015d}", data)
            sent[name] = at + len(data)
