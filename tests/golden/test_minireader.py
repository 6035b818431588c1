"""The format page says enough to write a reader: `minireader`, written from it alone, reads every golden checkpoint.

`checkpoint-v1-state/` has tensors in two ranks and every kind of value that is not a tensor made of others. To make the
files of a later version run `python -m tests.golden.test_minireader FOLDER`.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from holdfast.checkpoint import load, reading
from tests.golden import minireader
from tests.golden.minireader import Tensor
from tests.tensorparts import part_of, save_parts

HERE = Path(__file__).parent
SHARD = torch.arange(24, dtype=torch.float32).view(4, 6)
BASE = torch.arange(12, dtype=torch.int64)


def state(rank: int) -> dict[str, Any]:
    tied = torch.tensor([1.5, -2.0, math.inf], dtype=torch.bfloat16)
    return {
        "model": OrderedDict(a=tied, b=tied, base=BASE, window=BASE[3:11:2], mask=torch.tensor([True, False])),
        "shard": SHARD[2 * rank : 2 * rank + 2],
        "plain": [None, True, -3, 0.1, "ä\u202e", (1, (2,)), {3, 4}, b"\x00\xff", 1 << 70, -math.inf, 1 - 2j],
        "keys": {1: "int", (1, "a"): "tuple", None: "none", b"k": "bytes"},
        "types": {"dtype": torch.float8_e5m2, "device": torch.device("cuda:1"), "size": torch.Size([2, 3])},
        "@rng": {"rank": rank},
    }


def write(root: Path) -> None:
    """Make the golden folder."""
    parts = []
    for rank in (0, 1):
        part = part_of(state(rank), rank=rank, world=2, run="golden")
        for tensor in (t for chunk in part.table["chunks"] for t in chunk["tensors"] if t["name"] == "shard"):
            tensor.update(global_shape=[4, 6], index=[2 * rank, 0])
        parts.append(part)
    save_parts(root, parts)


def raw(tensor: torch.Tensor) -> Tensor:
    shape = tuple(tensor.shape)
    return Tensor(str(tensor.dtype)[6:], shape, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def test_the_state_of_every_rank_is_read_as_it_was_saved() -> None:
    root = HERE / "checkpoint-v1-state"
    minireader.check_format(root)
    (manifest,) = minireader.manifests(root)
    whole = minireader.tensors(root, manifest, [0, 1])
    for rank in (0, 1):
        saved = state(rank)
        found = minireader.value(manifest["ranks"][rank]["table"]["state"], whole)
        assert list(found) == list(saved)
        assert found["model"] == {key: raw(tensor) for key, tensor in saved["model"].items()}
        assert found["shard"] == raw(SHARD)
        assert found["plain"] == saved["plain"]
        assert found["keys"] == saved["keys"]
        assert found["types"] == {"dtype": "float8_e5m2", "device": "cuda:1", "size": (2, 3)}
        assert found["@rng"] == saved["@rng"]


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("checkpoint-*")))
def test_it_reads_what_we_read(name: str) -> None:
    root = HERE / name
    minireader.check_format(root)
    for manifest, info in zip(minireader.manifests(root), load.checkpoints(root), strict=True):
        found = minireader.tensors(root, manifest, list(range(info.world))[::-1])
        with reading.open_checkpoint(root, info) as checkpoint:
            assert found.keys() == checkpoint.tensors.keys()
            for key, tensor in checkpoint.tensors.items():
                buffer = bytearray(tensor.size_bytes)
                checkpoint.read_into(key, buffer)
                assert found[key] == Tensor(tensor.dtype, tensor.shape, bytes(buffer))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
