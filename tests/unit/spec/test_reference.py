"""The committed reference is what the schema says now."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from holdfast.commands.schema import command
from holdfast.spec import Source, load
from holdfast.spec.reference import json_schema
from holdfast.spec.run_file import Spec
from holdfast.spec.shape import section_in, walk
from holdfast.spec.support import SUPPORTED

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"


@pytest.mark.parametrize(("name", "options"), [("schema.json", []), ("run-file.md", ["--markdown"])])
def test_the_committed_page_is_current(name: str, options: list[str]) -> None:
    printed = CliRunner().invoke(command, options).output
    assert printed == (REFERENCE / name).read_text(), f"holdfast schema {' '.join(options)} > docs/reference/{name}"


def test_every_field_is_described_and_has_a_row() -> None:
    page = (REFERENCE / "run-file.md").read_text()
    for path, field in walk(Spec):
        assert field.description, path
        assert f"| `{path.rpartition('.')[2]}` |" in page, path


def test_every_default_and_every_example_of_a_supported_field_loads() -> None:
    for path, field in walk(Spec):
        supported = any(path == known or path.startswith(known + ".") for known in SUPPORTED)
        if (
            not supported
            or section_in(field.annotation) is not None
            or "<NAME>" in path
            or path.startswith("restart.rules.")
        ):
            continue
        for example in [text for text in field.examples or [] if " if " not in text]:
            metric = ["checkpoint.keep.best.metric=loss"] if path.startswith("checkpoint.keep.best.") else []
            mirror = ["checkpoint.mirror.url=/mnt/x"] if path.startswith("checkpoint.mirror.") else []
            overrides = ["run=x", *metric, *mirror, f"{path}={example}"]
            environ = {"DATA": "x", "WANDB_API_KEY": "x"}
            assert load([Source("f", "")], overrides=overrides, environ=environ)


def test_supported_fields_are_fields() -> None:
    assert {path for path, _ in walk(Spec)} >= SUPPORTED


def test_the_schema_is_closed_and_its_defaults_are_as_written() -> None:
    schema = json_schema()

    assert schema["additionalProperties"] is False
    assert schema["required"] == ["run"]
    assert schema["properties"]["stop_grace_period"]["default"] == "3m"
    assert all(table["additionalProperties"] is False for table in schema["$defs"].values())
