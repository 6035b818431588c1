"""Which machine a command line goes to, and what it is asked there. Nothing is connected."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from holdfast.commands import group, places, remembered
from holdfast.commands.arguments import KeepaliveOption
from holdfast.commands.reaching import Reaching
from holdfast.commands.table import THERE
from holdfast.errors import UsageError
from holdfast.link import pools
from tests.unit.commands.scene import holdfast, make_run


def going(*argv: str) -> list[tuple[str, str]]:
    """(host, line) of each machine that `holdfast argv` goes to; none: it stays here."""
    found = journey(*argv)
    return [] if found is None else [(line.host, " ".join(line.words)) for line in found.lines]


def journey(*argv: str) -> places.Journey | None:
    context, command, words = click.Context(group, info_name="holdfast"), group, list(argv)
    verb: click.Command = command
    while isinstance(verb, click.Group):
        name = words.pop(0)
        found = verb.get_command(context, name)
        assert found is not None
        verb, context = found, click.Context(found, info_name=name, parent=context, **found.context_settings)
    return places.journey(verb, THERE, context, words) if isinstance(verb, Reaching) else None


@pytest.fixture(autouse=True)
def hosts(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_home / "ssh_config").write_text("Host gpu-a\nHost gpu-b\nHost laptop\n")
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(own_home / "ssh_config"))


@pytest.mark.parametrize(
    ("argv", "there"),
    [
        ("status gpu-a:digits", "digits"),
        ("status --json gpu-a:digits", "--json digits"),
        ("logs -f gpu-a:digits --tail 3", "-f digits --tail 3"),
        ("resume gpu-a:digits@best -d", "digits@best -d"),
        ("ckpt show gpu-a:digits@3-17", "digits@3-17"),
        ("ckpt ls gpu-a:/data/checkpoints", "/data/checkpoints"),
        ("save --reason gpu-b:x gpu-a:digits", "--reason gpu-b:x digits"),
        ("shell gpu-a:digits -- ls gpu-b:x", "digits -- ls gpu-b:x"),
        ("status gpu-a:", ""),
        ("status --on gpu-a", ""),
        ("status digits --on=gpu-a --json", "digits --json"),
        ("ps --on gpu-a --all", "--all"),
        ("host setup --on gpu-a --yes", "--yes"),
        ("schedule ls --on gpu-a", ""),
        ("stop --timeout 5s gpu-a:digits", "digits"),
        ("wait --timeout 5s gpu-a:digits", "--timeout 5s digits"),
    ],
)
def test_what_a_machine_is_asked_is_the_same_line_without_its_name(argv: str, there: str) -> None:
    assert going(*argv.split()) == [("gpu-a", there)]


@pytest.mark.parametrize(
    "argv",
    [
        "status digits", "status", "ps", "status ./gpu-a:digits", "resume s3://bucket/digits@best", "schema",
        "ckpt prune --all --older-than 7d", "status gpu-a:digits --help", "save --reason gpu-a:digits",
    ],
)  # fmt: skip
def test_lines_without_a_machine_stay_here(argv: str) -> None:
    assert going(*argv.split()) == []


def test_a_pattern_means_each_of_its_machines() -> None:
    line = ("ckpt", "prune", "--all", "--older-than", "7d", "--dry-run")

    assert going(*line, "--on", "gpu-*", "--on", "laptop") == [
        ("gpu-a", "--all --older-than 7d --dry-run"),
        ("gpu-b", "--all --older-than 7d --dry-run"),
        ("laptop", "--all --older-than 7d --dry-run"),
    ]


def test_a_pool_means_each_of_its_machines() -> None:
    pools.make("gpus", ["gpu-b", "gpu-a"], [])

    assert going("ps", "--on", "gpus") == [("gpu-b", ""), ("gpu-a", "")]


def test_runs_of_several_machines_go_each_to_its_own_and_those_here_last() -> None:
    make_run("local")

    assert going("rm", "-f", "gpu-a:x", "local", "gpu-b:y", "gpu-a:z") == [
        ("gpu-a", "-f x z"),
        ("gpu-b", "-f y"),
        ("", "-f local"),
    ]


def test_two_checkpoints_of_different_machines_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="gpu-a:x on gpu-a, gpu-b:y on gpu-b"):
        going("ckpt", "diff", "gpu-a:x", "gpu-b:y")


def test_a_machine_is_said_once() -> None:
    with pytest.raises(UsageError, match="gpu-a:digits says where it is, and so does --on"):
        going("stop", "gpu-a:digits", "--on", "gpu-a")


def test_a_run_that_was_started_from_here_is_found_by_its_name(own_home: Path) -> None:
    remembered.remember("gpu-a", "digits", own_home, {}, ())

    assert going("status", "digits") == [("gpu-a", "digits")]
    assert going("resume", "digits@best") == [("gpu-a", "digits@best")]


def test_a_run_here_comes_before_one_of_its_name_elsewhere(own_home: Path) -> None:
    remembered.remember("gpu-a", "digits", own_home, {}, ())
    make_run("digits")

    assert going("status", "digits") == []


def test_a_name_on_two_machines_is_asked_back(own_home: Path) -> None:
    remembered.remember("gpu-a", "digits", own_home, {}, ())
    remembered.remember("gpu-b", "digits", own_home, {}, ())

    said = holdfast("status", "digits")

    assert said.code == 2
    assert said.err == "error: runs named 'digits' were started on gpu-a and gpu-b\nhint: name one: gpu-b:digits\n"


def test_what_was_forgotten_is_not_found(own_home: Path) -> None:
    remembered.remember("gpu-a", "digits", own_home, {}, ())
    remembered.remember("gpu-b", "digits", own_home, {}, ())
    remembered.forget("gpu-a", ["digits"])

    assert [place.host for place in remembered.places("digits")] == ["gpu-b"]
    remembered.forget("gpu-b", ["digits"])
    assert list(remembered.every()) == []


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2, "places": []}', '{"version": 1, "places": [{"x": 1}]}'])
def test_an_index_that_cannot_be_read_knows_nothing(own_home: Path, text: str) -> None:
    remembered.remember("gpu-a", "digits", own_home, {}, ())
    (own_home / "home" / "remote" / "digits.json").write_text(text)

    assert "no run named 'digits'" in holdfast("status", "digits").err


def test_a_wrong_option_is_told_before_anybody_is_asked() -> None:
    said = holdfast("status", "gpu-a:digits", "--jsno")

    assert said.code == 2
    assert "No such option" in said.err


@pytest.mark.parametrize(
    "name", ["run", "exec", "sync", "ssh", "forward", "jupyter", "tensorboard", "ps", "logs", "attach", "shell"]
)
def test_every_verb_that_reaches_a_host_takes_a_keepalive(name: str) -> None:
    verb = group.get_command(click.Context(group), name)

    assert verb is not None
    assert [param.opts for param in verb.params if isinstance(param, KeepaliveOption)] == [["--keepalive"]]


def test_a_keepalive_is_of_the_connection_and_no_word_of_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_KEEPALIVE", "1x1")  # so that what is said here ends with this test

    assert going("status", "--keepalive", "8x3", "gpu-a:digits") == [("gpu-a", "digits")]
    assert os.environ["HOLDFAST_KEEPALIVE"] == "8x3"
    with pytest.raises(UsageError, match="'8' is not a keepalive"):
        going("logs", "-f", "--keepalive=8", "gpu-a:digits")


def test_the_deadline_is_the_callers() -> None:
    found = journey("status", "gpu-a:digits", "--timeout", "2m")

    assert found is not None
    assert found.within_s == 120.0
