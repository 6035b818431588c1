"""Names for several hosts: where they are kept, and wherever a host is taken. Nothing is connected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.commands import run
from holdfast.errors import RunFileError, UsageError
from holdfast.link import hosts, names, pools
from holdfast.link.hosts import Settings
from holdfast.spec import Source, Spec, load
from holdfast.spec.support import refused
from tests.unit.commands.scene import holdfast


@pytest.fixture(autouse=True)
def config(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = own_home / "ssh_config"
    path.write_text("Host gpu-a\nHost gpu-b\nHost laptop\n")
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(path))
    return str(path)


def spec_of(infra: str) -> Spec:
    return load([Source("f", f"run: x\nresources: {{infra: {infra}}}\n")], environ={})


def test_a_pool_is_made_listed_and_removed() -> None:
    made = holdfast("host", "pool", "gpus", "gpu-*", "far")
    listed = json.loads(holdfast("host", "pool", "--json").out)

    assert (made.code, made.err.splitlines()[:2]) == (
        0,
        ["far is not in your ssh configuration", "gpus is gpu-a, gpu-b, far"],
    )
    assert listed == [{"pool": "gpus", "hosts": ["gpu-a", "gpu-b", "far"]}]
    assert holdfast("host", "pool").out == "POOL  HOSTS\ngpus  gpu-a gpu-b far\n"
    assert holdfast("host", "pool", "gpus", "--rm").code == 0
    assert holdfast("host", "pool").err.startswith("there is no pool yet")


def test_what_is_set_for_hosts_and_what_a_pool_is_stay_beside_each_other() -> None:
    hosts.update("gpu-a", Settings(persist_s=60.0))
    pools.make("gpus", ["gpu-a", "gpu-b"], [])
    hosts.update("gpu-b", Settings(persist_s=90.0))

    assert pools.every() == {"gpus": ("gpu-a", "gpu-b")}
    assert [host.settings.persist_s for host in hosts.load().values()] == [60.0, 90.0]


@pytest.mark.parametrize("name", ["gpu-a", "set-here"])
def test_a_pool_never_has_the_name_of_a_host(name: str) -> None:
    hosts.update("set-here", Settings(persist_s=60.0))

    said = holdfast("host", "pool", name, "gpu-b")

    assert (said.code, said.err.splitlines()[0]) == (2, f"error: {name} is the name of a host already")


def test_a_pool_is_no_host_of_its_own() -> None:
    assert holdfast("host", "pool", "gpus", "gpu-a", "gpus").code == 2
    pools.make("gpus", ["gpu-a"], [])
    assert holdfast("host", "pool", "gpus", "gpus", "gpu-b").code == 0  # those that it has, and one more
    assert pools.every()["gpus"] == ("gpu-a", "gpu-b")


def test_a_name_that_is_mistyped_is_told_with_the_one_that_may_be_meant(config: str) -> None:
    said = holdfast("host", "pool", "training", "gpu-a", "laptob")

    assert said.err.splitlines()[:2] == ["laptob is not in your ssh configuration", "hint: did you mean laptop?"]
    assert names.near("trainin", config) == "training"


@pytest.mark.parametrize("words", [("add", "gpus"), ("config", "gpus", "--persist", "no")])
def test_a_host_never_gets_the_name_of_a_pool(words: tuple[str, ...]) -> None:
    pools.make("gpus", ["gpu-a"], [])

    said = holdfast("host", *words)

    assert (said.code, said.err.splitlines()[0]) == (2, "error: gpus is the name of a pool")


def test_a_name_that_became_both_is_asked_back(config: str) -> None:
    pools.make("gpus", ["gpu-a"], [])
    Path(config).write_text("Host gpus\n")

    with pytest.raises(UsageError, match="gpus is a pool, and a host"):
        names.chosen(["gpus"], config)


def test_a_pool_of_pools_is_one_of_their_hosts() -> None:
    holdfast("host", "pool", "gpus", "gpu-a", "gpu-b")
    holdfast("host", "pool", "all", "laptop", "gpus", "gpu-a")

    assert pools.every()["all"] == ("laptop", "gpu-a", "gpu-b")


@pytest.mark.parametrize("words", [("gpus",), ("--rm",), ("gpus", "--rm")])
def test_a_pool_that_is_not_there_is_told(words: tuple[str, ...]) -> None:
    assert holdfast("host", "pool", *words).code == 2


@pytest.mark.parametrize(
    ("infra", "there"),
    [
        ("local", ()),
        ("ssh/gpu-a", ("gpu-a",)),
        ("ssh/gpus", ("gpu-a", "gpu-b")),
        ("[ssh/laptop, ssh/gpus, ssh/gpu-b]", ("laptop", "gpu-a", "gpu-b")),
    ],
)
def test_a_run_file_names_hosts_and_pools(infra: str, there: tuple[str, ...]) -> None:
    pools.make("gpus", ["gpu-a", "gpu-b"], [])

    assert list(refused(spec_of(infra))) == []
    assert run._elsewhere(None, spec_of(infra)) == there
    assert run._elsewhere("local", spec_of(infra)) == ()
    assert run._elsewhere("gpus", spec_of(infra)) == ("gpu-a", "gpu-b")


@pytest.mark.parametrize("infra", ["[]", "[local]", "[ssh/a, slurm/b]", "[ssh/a, ssh/a]", "[[ssh/a]]", "[ssh/-a]"])
def test_a_list_of_places_is_one_of_hosts(infra: str) -> None:
    with pytest.raises(RunFileError, match=r"infra"):
        spec_of(infra)
