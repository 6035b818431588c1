"""The catalogue of findings."""

from __future__ import annotations

import re

import pytest

from holdfast.findings import CATALOGUE, Finding, finding


@pytest.mark.parametrize("identifier", CATALOGUE)
def test_ids_are_words_and_each_says_what_to_do(identifier: str) -> None:
    kind = CATALOGUE[identifier]
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", identifier)
    assert kind.severity in ("info", "warning", "error")
    assert kind.meaning
    assert kind.hint


def test_a_finding_takes_what_the_catalogue_says_unless_told_otherwise() -> None:
    found = finding("disk-full", "0 B left on /data")
    assert found == Finding(
        id="disk-full", severity="error", message="0 B left on /data", hint=CATALOGUE["disk-full"].hint
    )
    assert finding("disk-full", "x", hint="h", severity="info").severity == "info"
    with pytest.raises(KeyError):
        finding("no-such-thing", "x")
