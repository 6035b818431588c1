"""No client of a relay outlives its test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.labs import relays


@pytest.fixture(autouse=True)
def clients() -> Iterator[None]:
    with relays.clients():
        yield
