"""One sshd for all tests of the link that need no special one; agents of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import sshd as lab
from tests.labs.links import own_links


@pytest.fixture(scope="package")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Sshd]:
    """For a user without rights."""
    with lab.person() as (user, home), lab.sshd(tmp_path_factory.mktemp("sshd"), user, home) as running:
        yield running


@pytest.fixture
def server(sshd: lab.Sshd) -> Iterator[lab.Sshd]:
    """The same, whose keys and configuration a test may change."""
    keys, config = sshd.allowed.read_text(), sshd.config.read_text()
    yield sshd
    sshd.allowed.write_text(keys)
    sshd.config.write_text(config)


@pytest.fixture
def own_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sshd: lab.Sshd) -> Iterator[None]:
    """A HOLDFAST_HOME and an agent for this test alone, ended afterwards; every name is one that `sshd` knows."""
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(sshd.config))
    monkeypatch.delenv("HOLDFAST_KEEPALIVE", raising=False)
    with own_links(tmp_path, monkeypatch):
        yield


@pytest.fixture(scope="module")
def shared_agent(tmp_path_factory: pytest.TempPathFactory, sshd: lab.Sshd) -> Iterator[None]:
    """The same for all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_SSH_CONFIG", str(sshd.config))
        patch.delenv("HOLDFAST_KEEPALIVE", raising=False)
        with own_links(tmp_path_factory.mktemp("home"), patch):
            yield
