"""Whether this holdfast may be another than the one that was pushed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from holdfast.bundle import sources
from tests.waiting import until


def test_a_file_that_may_be_another_and_what_is_installed_make_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, installed = tmp_path / "holdfast", tmp_path / "site-packages"
    (package / "deep").mkdir(parents=True)
    installed.mkdir()
    file = package / "deep" / "a.py"
    file.write_text("1")
    monkeypatch.setattr(sources, "PACKAGE", package)
    monkeypatch.setattr(sources, "_RECENT_NS", 50_000_000)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(installed), str(tmp_path / "python311.zip")])

    first = until(sources.fingerprint)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.pyc.1234").touch()
    assert until(sources.fingerprint) == first
    file.write_text("2")
    second = until(sources.fingerprint)
    (installed / "click-8.dist-info").mkdir()
    third = until(sources.fingerprint)

    assert len({first, second, third}) == 3
    assert sources.paths() == [file]


def test_what_was_changed_a_moment_ago_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").touch()
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    monkeypatch.setattr(sources, "_RECENT_NS", 3600_000_000_000)

    assert sources.fingerprint() == ""
