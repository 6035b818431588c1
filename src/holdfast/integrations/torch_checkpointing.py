"""A storage of meta-pytorch's torch_checkpointing: `HoldfastStorageConfig()` in place of its local file system's.

    manager = CheckpointManager(CheckpointManager.Config(storage_config=HoldfastStorageConfig(), …))

Its writer puts files below `tmp_NAME`, waits for all ranks and renames that folder to `NAME`: the rename is the commit.
Paths are plain: `/abs/path/to/root/NAME`, `root` a checkpoint folder.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_checkpointing.checkpoint_writer import DEFAULT_TEMP_DIR_PREFIX
from torch_checkpointing.storage.base_storage import ReadArgs, Storage, StorageConfig

from holdfast.integrations import parts, places, publishing
from holdfast.integrations.catalog import FOLDER
from holdfast.integrations.files import StagedFile
from holdfast.integrations.filesystem import HoldfastFileSystem, catalog_root, hold, one_each, share_of
from holdfast.integrations.parts import Part, Sealed

__all__ = ["HoldfastStorage", "HoldfastStorageConfig"]


@dataclass
class HoldfastStorageConfig(StorageConfig):
    """temp_dir_prefix: as in `CheckpointWriterConfig`, by default the same."""

    temp_dir_prefix: str = DEFAULT_TEMP_DIR_PREFIX

    def create_storage(self) -> HoldfastStorage:
        """The storage. Picklable, like this."""
        return HoldfastStorage(self)


class HoldfastStorage(Storage):
    """Files below `<prefix>NAME` wait, unseen, for the rename to `NAME`; others appear one by one when closed."""

    def __init__(self, config: HoldfastStorageConfig) -> None:
        self._prefix = config.temp_dir_prefix
        self._files = HoldfastFileSystem()

    def stream_read(self, path: Path, read_args: ReadArgs | None = None) -> io.RawIOBase:
        """A committed file; every byte is held against its hash. Raises FileNotFoundError, Damaged."""
        return self._files.open_raw(str(path))

    def stream_write(self, path: Path) -> io.IOBase:
        """A new file at `path`. Raises UsageError, OSError."""
        waiting = self._waiting(path)
        if waiting is None:
            opened: io.IOBase = self._files.open(str(path), "wb")
            return opened
        root = places.make(waiting.parent)
        name = places.name_in(root, waiting)
        part = Part(root, name, is_shared=True)
        return StagedFile(part, path.relative_to(waiting).as_posix(), hold, autocommit=True)

    def write(self, path: Path, data: Any) -> None:
        """All of a file."""
        with self.stream_write(path) as file:
            file.write(data)

    def delete(self, path: Path) -> None:
        """Remove a file. Raises FileNotFoundError."""
        staged = [one for one in self._staged(path) if path == self._path_of(one, path)]
        for one in staged:
            parts.remove(one)
        if not staged:
            self._files.rm_file(str(path))

    def mkdir(self, path: Path, recursive: bool = True) -> None:
        """Make a folder; below a prefixed one nothing has to be made, but parts that a dead save left there go."""
        waiting = self._waiting(path / "any")
        if waiting is None:
            self._files.makedirs(str(path), exist_ok=recursive)
            return
        root = places.make(waiting.parent)
        name = places.name_in(root, waiting)
        parts.release(root, keep=name)
        parts.sweep(root, name)

    def rmdir(self, path: Path) -> None:
        """Remove a folder with all that is in it."""
        staged = self._staged(path)
        for one in staged:
            parts.remove(one)
        if not staged:
            self._files.rm(str(path), recursive=True)

    def rename(
        self, src_path: Path, dst_path: Path, is_directory: bool = False, background_cleanup: bool = False
    ) -> None:
        """A prefixed folder to its final name: the commit. Raises FileExistsError for a name that is taken, Torn."""
        target = self._files.info(str(dst_path)) if self._files.exists(str(dst_path)) else None
        staged = self._staged(src_path)
        occupied = target is not None and (target["type"] == "file" or self._files.ls(str(dst_path)))
        if target is not None and (occupied if staged or is_directory else target["type"] == "directory"):
            raise FileExistsError(f"{dst_path} is taken: a rename commits to a name that is free")
        if not staged:
            self._files.mv(str(src_path), str(dst_path))
            return
        root = catalog_root(src_path)
        files = one_each(staged, str(src_path))
        shares: dict[str, list[Sealed]] = {}
        for file in sorted(files):
            shares.setdefault(files[file].owner, []).append(files[file])
        name = places.name_in(root, dst_path)
        publishing.publish(root, name, FOLDER, [share_of(one) for one in shares.values()], replace=False)
        parts.release(root)

    def ls(self, path: Path) -> list[str]:
        """Names of what is committed in the folder."""
        return [Path(one).name for one in self._files.ls(str(path), detail=False)]

    def exists(self, path: Path) -> bool:
        """Whether a file or folder is there, committed or waiting."""
        return any(path in (one, *one.parents) for one in self._waiting_files(path)) or self._files.exists(str(path))

    def getsize(self, path: Path) -> int:
        """In bytes. Raises FileNotFoundError."""
        return int(self._files.info(str(path))["size"])

    def isdir(self, path: Path) -> bool:
        """Whether it is a folder."""
        return bool(self._files.isdir(str(path)))

    def remap_path(self, path: Path) -> str:
        """The URL that fsspec knows the same file by."""
        return f"holdfast://{path}"

    def _waiting(self, file: Path) -> Path | None:
        """The prefixed folder that `file` is to appear with; None for a file of its own."""
        return next((one for one in file.parents if one.name.startswith(self._prefix)), None)

    def _staged(self, path: Path) -> list[Sealed]:
        """The parts that wait in the prefixed folder of `path`."""
        waiting, root = self._waiting(path / "any"), places.above(path)
        return parts.sealed(root, places.name_in(root, waiting)) if waiting is not None and root is not None else []

    def _path_of(self, part: Sealed, path: Path) -> Path:
        waiting = self._waiting(path / "any")
        assert waiting is not None
        return waiting / str(part.about["file"])

    def _waiting_files(self, path: Path) -> Iterable[Path]:
        return (self._path_of(one, path) for one in self._staged(path))
