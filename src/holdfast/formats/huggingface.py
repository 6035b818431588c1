"""A folder as `from_pretrained` wants it: safetensors, in several files with an index when large, config and tokenizer.

Config and tokenizer are copied from a folder that has them; a checkpoint does not know them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.checkpoint.contents import TensorInfo
from holdfast.checkpoint.reading import Checkpoint
from holdfast.errors import UsageError
from holdfast.formats import safetensors
from holdfast.formats.base import Choice, Unreadable, weights

SAYS = "a folder for from_pretrained: weights, config.json, tokenizer"
SUFFIXES: tuple[str, ...] = ()
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_MAX_INDEX_BYTES = 64 << 20
_COPIED = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
    "merges.txt", "*.model", "chat_template*", "preprocessor_config.json", "processor_config.json", "*.py",
)  # fmt: skip


def export(checkpoint: Checkpoint, into: Path, choice: Choice) -> list[str]:
    """The folder. Of tied tensors one is written: the model class ties them again from its config."""
    found = weights(checkpoint, choice)
    copied = _config_files(choice.config)
    into.mkdir()
    shards = _shards(found.tensors, choice.shard_bytes)
    names = (
        [_SINGLE] if len(shards) == 1 else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in _from_1(shards)]
    )
    for name, shard in zip(names, shards, strict=True):
        safetensors.write(checkpoint, shard, into / name, {"format": "pt"})
    if len(shards) > 1:
        _write_index(
            into, {key: name for name, shard in zip(names, shards, strict=True) for key in shard}, found.tensors
        )
    for path in copied:
        shutil.copyfile(path, into / path.name)
    (into / "holdfast.json").write_text(json.dumps(safetensors.metadata(checkpoint), indent=2) + "\n")
    said = [f"{name} is {kept}, written once" for name, kept in found.aliases.items()]
    return [*found.said, *said] + ([] if copied else ["no config.json: give the folder that has it with --config"])


def _from_1(shards: list[dict[str, TensorInfo]]) -> range:
    return range(1, len(shards) + 1)


def _shards(tensors: Mapping[str, TensorInfo], most_bytes: int) -> list[dict[str, TensorInfo]]:
    """Tensors in order of their names, as many in a file as fit."""
    shards: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name in sorted(tensors):
        if shards[-1] and size + tensors[name].size_bytes > most_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensors[name]
        size += tensors[name].size_bytes
    return shards


def _write_index(into: Path, places: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    total = sum(info.size_bytes for info in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (into / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _config_files(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no config.json", hint="--config FOLDER, the one the model was made from")
    return sorted({path for pattern in _COPIED for path in folder.glob(pattern) if path.is_file()})


def read(source: Path) -> dict[str, Any]:
    """The weights of every file. Raises Unreadable, OSError."""
    if (source / _SINGLE).is_file() and not (source / _INDEX).exists():
        return safetensors.read(source / _SINGLE)
    places = _index(source)
    found: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        held = safetensors.read(source / name)
        if twice := found.keys() & held.keys():
            raise Unreadable(f"{source}: {min(twice)[:100]!r} is in two files")
        found.update(held)
    if lost := places.keys() - found.keys():
        raise Unreadable(f"{source}: {min(lost)[:100]!r} is in the index and in no file")
    return found


def _index(source: Path) -> dict[str, str]:
    """Tensor → file. Raises Unreadable; a name that leads elsewhere is refused."""
    path = source / _INDEX
    try:
        with path.open("rb") as file:
            places = json.loads(file.read(_MAX_INDEX_BYTES).decode())["weight_map"]
        named = {str(name) for name in places.values()}
    except FileNotFoundError as error:
        raise Unreadable(f"{source} holds neither {_SINGLE} nor {_INDEX}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(f"{path} is no index of weights: {str(error)[:100]}") from error
    for name in named:
        inside = name not in (".", "..") and "/" not in name and "\0" not in name and name.endswith(".safetensors")
        if not inside or not (source / name).is_file():  # links are followed: the hub's cache consists of them
            raise Unreadable(f"{path} names {name[:100]!r}, which is no file of weights in that folder")
    return {str(key): str(name) for key, name in places.items()}
