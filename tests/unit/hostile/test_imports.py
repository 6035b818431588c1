"""No imported file runs code, takes memory it has no use for, or fails without a sentence on what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.checkpoint.reading import open_checkpoint
from holdfast.errors import HoldfastError
from holdfast.formats import base
from tests.tensorparts import save
from tests.unit.hostile import imports

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("imports")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.hostile.imports"],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), folder


def test_the_payloads_would_run_if_they_were_unpickled(tmp_path: Path) -> None:
    code = f"import pickle; pickle.loads(open({str(imports.CORPUS / 'dcp' / 'system' / '.metadata')!r}, 'rb').read())"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

    assert (tmp_path / imports.MARKER).exists()


def test_nothing_was_run(result: tuple[dict[str, Any], Path]) -> None:
    assert list(result[1].iterdir()) == []
    assert not list(imports.CORPUS.rglob(imports.MARKER))


def test_every_file_is_refused_with_a_sentence(result: tuple[dict[str, Any], Path]) -> None:
    outcomes = result[0]["outcomes"]

    assert len(outcomes) > 60
    assert [one for one in outcomes if one["kind"] != "Unreadable" or len(one["said"]) < 20] == []


def test_it_takes_little_memory_and_time(result: tuple[dict[str, Any], Path]) -> None:
    assert result[0]["peak_bytes"] < imports.RESIDENT_BYTES
    assert [one for one in result[0]["outcomes"] if one["seconds"] > imports.SECONDS / 2] == []


@settings(max_examples=150, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("form", ["safetensors", "pt", "dcp"])
def test_a_good_file_with_some_bytes_changed_is_read_or_refused(
    form: str, good: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    spoiled = tmp_path_factory.getbasetemp() / f"spoiled-{form}"
    if good[form].is_dir():
        shutil.copytree(good[form], spoiled, dirs_exist_ok=True)
        file = spoiled / ".metadata"
    else:
        shutil.copyfile(good[form], spoiled)
        file = spoiled
    raw = bytearray(file.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4)):
        raw[at] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)
    try:
        base.named(form).read(spoiled)
    except (HoldfastError, OSError) as error:
        assert str(error)


def test_a_shard_that_stands_out_of_an_empty_tensor_is_refused(good: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(good["dcp"], tmp_path / "dcp")
    metadata = tmp_path / "dcp" / ".metadata"
    raw = metadata.read_bytes()
    begin = raw.index(b"Size\x94\x93\x94K\x03K\x04") + len(b"Size\x94\x93\x94K")
    metadata.write_bytes(raw[:begin] + b"\0" + raw[begin + 1 :])

    with pytest.raises(HoldfastError):
        base.named("dcp").read(tmp_path / "dcp")


def test_a_file_that_says_it_is_one_of_several_is_read_or_refused(good: dict[str, Path], tmp_path: Path) -> None:
    raw = bytearray(good["pt"].read_bytes())
    locator = raw.index(b"PK\6\7")  # of the ZIP64 end record
    raw[locator + 16] = 2  # disks in all; zipfile raises for it where it should say whether it is a zip file
    (tmp_path / "one.pt").write_bytes(raw)

    with contextlib.suppress(HoldfastError):
        assert list(base.named("pt").read(tmp_path / "one.pt")) == ["model"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    info = save(folder / "checkpoints", {"model": {"w": torch.ones(3, 4), "b": torch.arange(5)}})
    found = {form: folder / form for form in ("safetensors", "pt", "dcp")}
    for form, path in found.items():
        with open_checkpoint(folder / "checkpoints", info) as checkpoint:
            base.write(form, checkpoint, path, base.Choice(names=("model",)), force=False)
    return found
