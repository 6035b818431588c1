"""`holdfast://` for fsspec: whoever saves to a URL saves holdfast checkpoints.

`holdfast:///abs/path/to/root/NAME`: `root` is a checkpoint folder, NAME a checkpoint in it. A single file appears when
it is closed. A folder of `torch.distributed.checkpoint` (`__r_k.distcp`, `.metadata`) appears when its coordinator
gives `.metadata` its name, and then all at once; saved to a NAME that is taken, the old one stays until then.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from holdfast.errors import UsageError
from holdfast.integrations import catalog, parts, places, publishing
from holdfast.integrations.catalog import FILE, FOLDER, Entry
from holdfast.integrations.files import StagedFile, Stored, StoredFile
from holdfast.integrations.parts import Part, Sealed
from holdfast.integrations.publishing import Share, Torn

ONLY = "file"  # what a single file is called in its manifest, whatever its name
_METADATA, _METADATA_BEFORE = ".metadata", ".metadata.tmp"
_SHARD = re.compile(r"__\d+_\d+\.distcp\Z")
_SHARDS = re.compile(rb"__\d+_\d+\.distcp")
_RANK_METADATA = re.compile(r"__\d+\.metadata(\.tmp)?\Z")


class HoldfastFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Checkpoint folders as a file system. Errors: OSError as usual, Damaged, UsageError, Torn, FolderInUse."""

    protocol = "holdfast"
    root_marker = "/"
    cachable = True

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        plain = os.fspath(path)
        if plain.startswith("holdfast:"):
            plain = plain.removeprefix("holdfast:")
            if plain.startswith("//") and not plain.startswith("///"):
                raise UsageError(
                    f"holdfast:{plain} has no absolute path", hint="write holdfast:///abs/path/to/root/NAME"
                )
        return os.path.normpath("/" + plain.lstrip("/"))

    # What is there

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """name, size, type and created of what is at `path`. Raises FileNotFoundError, Damaged."""
        plain = Path(self._strip_protocol(path))
        found = self._find(plain)
        if found is not None:
            return _file_info(plain, *found)
        if plain.is_dir() and not _is_own(plain):
            return _folder_info(plain)
        root = places.above(plain)
        name = places.name_in(root, plain) if root else ""
        if root is None or not any(one.startswith(name + "/") for one in _files_of(root)):
            absent = FileNotFoundError(f"there is no {plain}, nor is any folder above it a checkpoint folder")
            raise catalog.of(root).absent(name) if root else absent
        return _folder_info(plain)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is something at `path`. Raises Damaged when that cannot be told."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """What is in the folder `path`. Raises FileNotFoundError."""
        plain = Path(self._strip_protocol(path))
        here = self.info(str(plain))
        found = [here] if here["type"] == "file" else list(self._children(plain))
        return found if detail else [one["name"] for one in found]

    def _children(self, folder: Path) -> Iterable[dict[str, Any]]:
        root = places.above(folder)
        rows: dict[str, dict[str, Any]] = {}
        if folder.is_dir():
            for one in sorted(folder.iterdir()):
                if one.is_dir() and not _is_own(one):
                    rows[one.name] = _folder_info(one)
        if root is not None:
            name = places.name_in(root, folder)
            prefix = f"{name}/" if name else ""
            for file, (entry, key) in sorted(_files_of(root).items()):
                if file.startswith(prefix):
                    first, _, rest = file.removeprefix(prefix).partition("/")
                    rows[first] = _folder_info(folder / first) if rest else _file_info(folder / first, entry, key)
        return rows.values()

    def _find(self, path: Path) -> tuple[Entry, str] | None:
        root = places.above(path)
        return _files_of(root).get(places.name_in(root, path)) if root is not None else None

    def created(self, path: str) -> dt.datetime:
        """When the checkpoint at `path` was committed."""
        return dt.datetime.fromtimestamp(self.info(path)["created"], dt.timezone.utc)

    modified = created

    # Reading and writing

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        plain = Path(self._strip_protocol(path))
        if mode == "rb":
            return StoredFile(self.open_raw(str(plain)))
        if mode not in ("wb", "ab", "xb"):
            raise UsageError(
                f"{plain} cannot be opened as {mode!r}: a checkpoint is written once", hint="use 'rb' or 'wb'"
            )
        before = b""
        if mode == "ab" and self._find(plain) is not None:
            with self.open_raw(str(plain)) as file:
                before = file.readall()
        if mode == "xb" and self._find(plain) is not None:
            raise FileExistsError(str(plain))
        staged = self._write(plain, autocommit=autocommit)
        staged.write(before)
        return staged

    def open_raw(self, path: str) -> Stored:
        """A file to read without a buffer. Raises FileNotFoundError, IsADirectoryError, Damaged."""
        plain = Path(self._strip_protocol(path))
        found = self._find(plain)
        if found is None:
            info = self.info(str(plain))  # raises what is to be said
            raise IsADirectoryError(info["name"])
        return Stored(catalog_root(plain), *found)

    def _write(self, path: Path, *, autocommit: bool) -> StagedFile:
        if _RANK_METADATA.match(path.name):
            raise UsageError(
                "without collectives nothing binds the ranks of a save together", hint="leave use_collectives=True"
            )
        if _is_shared(path.name):
            root = places.make(path.parent.parent)
            name = places.name_in(root, path.parent)
            parts.release(root, keep=name)
            if _SHARD.match(path.name):
                return StagedFile(Part(root, name, is_shared=True), path.name, hold, autocommit=True)
            when_whole = hold if path.name == _METADATA_BEFORE else lambda _part, _size: _commit_folder(path.parent)
            return _MetadataFile(Part(root, name, is_shared=True), _METADATA, when_whole, autocommit=True)
        root = places.make(path.parent)
        name = places.name_in(root, path)

        def commit(part: Part, size: int) -> None:
            sealed = parts.read(part.folder)
            if sealed is None:
                raise Torn(f"the part of {name!r} was removed before it could be committed", hint="save again")
            publishing.publish(root, name, FILE, [Share([sealed], {"files": {ONLY: size}})])
            part.drop()

        return StagedFile(Part(root, name), ONLY, commit, autocommit=autocommit)

    # Names

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder and those above it; in a checkpoint folder, parts that a dead save of that name left go."""
        plain = Path(self._strip_protocol(path))
        if not exist_ok and self.exists(str(plain)):
            raise FileExistsError(str(plain))
        root = places.above(plain)
        if root is not None:
            parts.sweep(root, places.name_in(root, plain))
        plain.mkdir(parents=True, exist_ok=True)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a folder. Raises FileExistsError."""
        if not create_parents:
            self.info(self._parent(path))
        self.makedirs(path, exist_ok=False)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder. Raises OSError."""
        plain = Path(self._strip_protocol(path))
        if list(self._children(plain)):
            raise OSError(f"{plain} is not empty")
        plain.rmdir()

    def rm_file(self, path: str) -> None:
        """Remove a single file, or a part not committed yet. A file of a folder goes with the folder only."""
        plain = Path(self._strip_protocol(path))
        if _is_shared(plain.name):
            self._drop_shared(plain)
            return
        found = self._find(plain)
        if found is None:
            raise FileNotFoundError(str(plain))
        publishing.remove(catalog_root(plain), [found[0]])

    def _drop_shared(self, path: Path) -> None:
        """A part that failed; or `.metadata` while a new one waits, which the rename that follows replaces."""
        root = catalog_root(path)
        name = places.name_in(root, path.parent)
        written = _METADATA if path.name == _METADATA_BEFORE else path.name
        waiting = [one for one in parts.sealed(root, name) if one.about["file"] == written]
        if not waiting and self._find(path) is not None:
            raise UsageError(f"{path} is one file of the checkpoint {name!r}", hint=f"remove {path.parent} as a whole")
        for one in waiting if path.name != _METADATA else []:
            parts.remove(one)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove a file or, if `recursive`, a folder: whole checkpoints, all at once. Raises FileNotFoundError."""
        for one in path if isinstance(path, list) else [path]:
            self._rm_one(Path(self._strip_protocol(one)), recursive=recursive)

    def _rm_one(self, plain: Path, *, recursive: bool) -> None:
        if _is_shared(plain.name) or self.info(str(plain))["type"] == "file":
            self.rm_file(str(plain))
            return
        if not recursive:
            raise IsADirectoryError(str(plain))
        root = places.above(plain)
        if root is not None and root != plain:
            name = places.name_in(root, plain)
            inside = [e for e in catalog.of(root).all() if e.name == name or e.name.startswith(name + "/")]
            publishing.remove(root, inside)
        if plain.is_dir():
            _remove_empty(plain)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Give a file or a checkpoint another name in its folder; `.metadata.tmp` to `.metadata` commits a save."""
        source, target = Path(self._strip_protocol(path1)), Path(self._strip_protocol(path2))
        if (source.name, target.name) == (_METADATA_BEFORE, _METADATA) and source.parent == target.parent:
            _commit_folder(source.parent)
            return
        root = places.above(source)
        if root is None or places.above(target) != root:
            raise UsageError(f"{source} and {target} are not in one checkpoint folder", hint="copy, then remove")
        name, new = places.name_in(root, source), places.name_in(root, target)
        moved = [e for n, e in catalog.of(root).entries().items() if n == name or n.startswith(name + "/")]
        if not moved:
            raise catalog.of(root).absent(name)
        for entry in moved:
            publishing.rename(root, entry, new + entry.name.removeprefix(name))
        if source.is_dir():
            _remove_empty(source)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy one file; chunks that are there are not written again."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        with self.open(path1, "rb") as source, self.open(path2, "wb") as target:
            shutil.copyfileobj(source, target, 8 << 20)


def catalog_root(path: Path) -> Path:
    """The checkpoint folder that `path` lies in. Raises FileNotFoundError."""
    root = places.above(path)
    if root is None:
        raise FileNotFoundError(f"{path} is in no checkpoint folder")
    return root


def _is_shared(file: str) -> bool:
    """Whether several processes write files of this kind, for one checkpoint."""
    return file in (_METADATA, _METADATA_BEFORE) or _SHARD.match(file) is not None


def hold(part: Part, size: int) -> None:
    """Keep a part until the coordinator commits it."""


def _is_own(path: Path) -> bool:
    """Whether `path` is one of the folders that a checkpoint folder consists of."""
    root = places.above(path)
    return root is not None and root != path and path.relative_to(root).parts[0] in places.RESERVED


def _remove_empty(folder: Path) -> None:
    """Remove empty folders from the bottom up; a checkpoint folder in there stays with what it holds."""
    for one, _, _ in os.walk(folder, topdown=False):
        if not any(Path(one).iterdir()):
            Path(one).rmdir()


def _files_of(root: Path) -> dict[str, tuple[Entry, str]]:
    """Path below `root` → the checkpoint it belongs to, and what it is called in the manifest."""
    found: dict[str, tuple[Entry, str]] = {}
    for name, entry in catalog.of(root).entries().items():
        if entry.kind == FILE:
            found[name] = (entry, ONLY)
        elif entry.kind == FOLDER:
            found |= {f"{name}/{file}": (entry, file) for file in entry.files}
    return found


def _file_info(path: Path, entry: Entry, key: str) -> dict[str, Any]:
    return {"name": str(path), "size": entry.files[key], "type": "file", "created": entry.info.time_s}


def _folder_info(path: Path) -> dict[str, Any]:
    return {"name": str(path), "size": 0, "type": "directory"}


def _commit_folder(folder: Path) -> None:
    """Bind the new `.metadata` and the files that it names to one checkpoint."""
    root = catalog_root(folder)
    name = places.name_in(root, folder)
    there = parts.sealed(root, name)
    files = one_each(there, name)
    metadata = files.pop(_METADATA, None)
    if metadata is None:
        raise FileNotFoundError(f"{folder / _METADATA_BEFORE} was not written")
    named: list[str] = metadata.about["shards"]
    if missing := [file for file in named if file not in files]:
        raise Torn(f"{missing[0]} of {name!r} was not written in this save; nothing was committed", hint="save again")
    shares: dict[str, list[Sealed]] = {metadata.owner: [metadata]}
    for file in named:
        shares.setdefault(files[file].owner, []).append(files[file])
    publishing.publish(root, name, FOLDER, [share_of(sealed) for sealed in shares.values()])
    for one in there:  # also what was written twice, and what no rank asked for
        if one.owner in shares:
            parts.remove(one)
    parts.release(root)


def share_of(sealed: list[Sealed]) -> Share:
    """What one process contributes to a folder of files."""
    return Share(sealed, {"files": {one.about["file"]: one.about["size"] for one in sealed}})


def one_each(found: list[Sealed], name: str) -> dict[str, Sealed]:
    """The parts by file, of several by one writer the last. Raises Torn when two processes wrote one file."""
    files: dict[str, Sealed] = {}
    for part in sorted(found, key=lambda one: one.number):
        file = part.about["file"]
        if file in files and files[file].owner != part.owner:
            raise Torn(
                f"two processes wrote {file} of {name!r}, one of them for another save; nothing was committed",
                hint="end what is left of the earlier attempt",
            )
        files[file] = part
    return files


class _MetadataFile(StagedFile):
    """`.metadata`: notes which files it speaks of, without unpickling it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._raw = bytearray()

    def write(self, data: Any) -> int:
        self._raw += data
        return super().write(data)

    def about(self) -> dict[str, Any]:
        named = {match.decode() for match in _SHARDS.findall(bytes(self._raw))}
        return {**super().about(), "shards": sorted(named, key=_rank_and_number)}


def _rank_and_number(shard: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", shard)]
