"""Secrets from commands and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.credentials import SecretUnavailable, fetch


def test_a_command_gives_its_first_line_and_a_file_its_content(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("line one\nline two\n")

    found = fetch({"A": {"command": "printf 'x y\\nz\\n'"}, "B": {"file": str(tmp_path / "f")}})

    assert found == {"A": "x y", "B": "line one\nline two"}


@pytest.mark.parametrize("recipe", [
    {"command": "echo hunter2; exit 3"}, {"command": "true"}, {"command": "printf 'hunter2\\377\\n'"},
    {"file": "/nonexistent"}, {"file": "/dev/null"},
])  # fmt: skip
def test_what_cannot_be_had_is_named_and_not_shown(recipe: dict[str, str]) -> None:
    with pytest.raises(SecretUnavailable, match="secret KEY: ") as caught:
        fetch({"KEY": recipe})
    assert "hunter2" not in str(caught.value)
