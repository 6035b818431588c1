"""Which wheels go to a node: in the versions installed here, for its Python and platform, from the registry once."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from holdfast.bundle import closure, making, own
from holdfast.bundle.places import Platform
from holdfast.errors import HoldfastError

THIS_MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
HERE = Platform(THIS_MINOR, os.uname().machine, *(os.confstr("CS_GNU_LIBC_VERSION") or "musl 1.2").split())


def test_all_of_the_closure_is_pinned_and_nothing_of_torch_is_in_it() -> None:
    names = {line.partition("==")[0]: line.partition("==")[2] for line in closure.needed(HERE)}

    assert {"blake3", "click", "pydantic", "pydantic-core", "rich", "obstore"} <= set(names)
    assert not {"pygments", "markdown-it-py"} & set(names)
    assert names["pydantic"] == importlib.metadata.version("pydantic")
    assert not {"torch", "numpy", "holdfast", "pytest", "moto"} & set(names)


def test_what_only_another_python_needs_is_asked_for_it() -> None:
    newer, older = (
        [line for line in closure.needed(Platform(python, "x86_64", "glibc", "2.34")) if "blake3" in line]
        for python in ("3.14", "3.11")
    )

    assert newer == older == [f"blake3=={importlib.metadata.version('blake3')}"]


def test_tags_begin_with_the_newest_that_runs_there() -> None:
    glibc = closure.tags(Platform("3.11", "aarch64", "glibc", "2.28"))

    assert glibc[0] == "manylinux_2_28_aarch64"
    assert "manylinux_2_29_aarch64" not in glibc
    assert glibc.index("manylinux2014_aarch64") == glibc.index("manylinux_2_17_aarch64") + 1
    assert closure.tags(Platform("3.11", "x86_64", "musl", "1.2.4")) == [
        f"musllinux_1_{minor}_x86_64" for minor in (2, 1, 0)
    ]


def test_pip_is_asked_or_uv_and_where_neither_is_a_person_is_told() -> None:
    assert closure.fetcher(has_pip=True, uv=None) == [sys.executable, "-m", "pip"]
    assert closure.fetcher(has_pip=False, uv="/opt/uv") == ["/opt/uv", "tool", "run", "pip"]
    with pytest.raises(HoldfastError, match="has no pip, and there is no uv") as refused:
        closure.fetcher(has_pip=False, uv=None)
    assert "ensurepip" in refused.value.hint


@pytest.mark.usefixtures("laptop")
def test_a_bundle_is_fetched_once_and_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = closure.bundle(HERE)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")

    assert closure.cached(HERE) is not None
    assert closure.bundle(HERE).hash == first.hash
    assert len(first.hash) == 16
    assert {name.partition("-")[0] for name, _ in first.contents} > {"holdfast", "blake3", "pydantic_core", "obstore"}
    assert first.unpacked_bytes > sum(first.sizes_bytes.values()) > 5_000_000


@pytest.mark.usefixtures("laptop")
def test_a_cache_with_a_wheel_missing_is_none() -> None:
    lost = closure.bundle(HERE).others[0].path
    aside = lost.rename(lost.with_suffix(".aside"))

    assert closure.cached(HERE) is None
    aside.rename(lost)
    assert closure.cached(HERE) is not None


@pytest.mark.usefixtures("laptop")
def test_a_python_that_is_too_old_for_what_is_installed_here_gets_the_newest_that_fits() -> None:
    there = closure.bundle(Platform("3.10", "aarch64", "glibc", "2.28"))

    native = [name for name, _ in there.contents if name.startswith(("blake3", "pydantic_core", "zstandard"))]
    assert len(native) == 3
    assert all("cp310" in name and "aarch64" in name for name in native)


@pytest.mark.usefixtures("laptop")
def test_a_platform_without_wheels_is_named_and_another_one_taken() -> None:
    bare = Platform(THIS_MINOR, "sparc64", "glibc", "2.34")
    closure.bundle(HERE)
    said: list[str] = []

    platform, _ = making.first_made("gpu-a", [bare, HERE], said.append, making.made)

    assert platform == HERE
    assert said[0] == f"gpu-a: fetching wheels for {bare}"
    assert said[1].startswith("gpu-a: there is no wheel of ") and said[1].endswith(f" for {bare}")


@pytest.mark.usefixtures("laptop")
def test_a_registry_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_INDEX", "0")

    with pytest.raises(HoldfastError, match="wheel"):
        closure.bundle(Platform("3.12", "aarch64", "glibc", "2.31"))


def test_our_own_wheel_is_one_that_installs_and_is_the_same_each_time(tmp_path: Path) -> None:
    name, data = own.wheel()
    (tmp_path / name).write_bytes(data)
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", "there", name]
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True)

    assert own.wheel() == (name, data)
    assert (tmp_path / "there/holdfast/bundle/probe.sh").exists()
    assert (tmp_path / f"there/{name.removesuffix('-py3-none-any.whl')}.dist-info/METADATA").exists()
    shutil.rmtree(tmp_path / "there")


def test_our_own_wheel_holds_no_bytecode() -> None:
    import io

    with zipfile.ZipFile(io.BytesIO(own.wheel()[1])) as archive:
        assert archive.testzip() is None
        assert not [name for name in archive.namelist() if "__pycache__" in name or name.endswith(".pyc")]
