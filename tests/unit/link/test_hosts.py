"""What holds for a connection: who says it first, what was measured, and the file it is kept in."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError, UsageError
from holdfast.link import hosts
from holdfast.link.hosts import Chosen, Idle, Measured, Settings
from holdfast.spec.places import Link
from holdfast.units import Keepalive

FAST, SLOW = Keepalive(interval_s=5, count=2), Keepalive(interval_s=60, count=5)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path))
    monkeypatch.delenv("HOLDFAST_KEEPALIVE", raising=False)
    return tmp_path


def measured(**more: object) -> Measured:
    return Measured(**{"at_s": 1.0, "trip_s": 0.01, **more})  # type: ignore[arg-type]


def test_the_first_that_says_something_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    run_file = hosts.from_run_file(Link.model_validate({"keepalive": "20x4", "max_age": "7h30m"}))

    def keepalive(said: Settings | None = None, run: Settings | None = None) -> tuple[str, str]:
        chosen = hosts.for_call("gpu-a", said, run)
        return hosts.show_keepalive(chosen.keepalive), chosen.why["keepalive"]

    assert keepalive() == ("15x3", "not measured yet")
    hosts.update("gpu-a", Settings(keepalive=SLOW))
    assert keepalive() == ("60x5", "the host's settings")
    assert keepalive(run=run_file) == ("20x4", "the run file")
    monkeypatch.setenv("HOLDFAST_KEEPALIVE", "7x7")
    assert keepalive(run=run_file) == ("7x7", "the environment")
    assert keepalive(Settings(keepalive=FAST), run_file) == ("5x2", "the command line")
    assert keepalive(Settings(keepalive="off"), run_file)[0] == "off"
    assert hosts.for_call("gpu-a", None, run_file).max_age_s == 7.5 * 3600


def test_the_defaults_of_a_run_file_say_nothing() -> None:
    hosts.update("gpu-a", Settings(persist_s=60.0, compression="on"))

    chosen = hosts.for_call("gpu-a", None, hosts.from_run_file(Link.model_validate({})))

    assert (chosen.persist_s, chosen.compression) == (60.0, True)


def test_the_words_of_a_run_file_mean_what_they_say() -> None:
    hosts.update("gpu-a", Settings(persist_s=60.0, max_age_s=60.0))
    link = Link.model_validate({"persist": "no", "compression": "on", "max_age": None, "keepalive": "off"})

    chosen = hosts.for_call("gpu-a", None, hosts.from_run_file(link))

    assert (chosen.persist_s, chosen.compression, chosen.max_age_s, chosen.keepalive) == (0.0, True, 0.0, None)


def test_every_setting_may_stand_in_the_environment_and_in_a_run_file(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link.model_validate({"tcp_keepalive": True, "identities_only": False})
    hosts.update("gpu-a", Settings(tcp_keepalive=False))
    assert hosts.for_call("gpu-a", None, hosts.from_run_file(link)).options["TCPKeepAlive"] == "yes"
    assert hosts.for_call("gpu-a", None, hosts.from_run_file(link)).options["IdentitiesOnly"] == "no"

    texts = {"tcp_keepalive": "off", "identities_only": "on", "compression": "on", "persist": "no", "max_age": "1h"}
    for name, text in {**texts, "multiplex": "off"}.items():
        monkeypatch.setenv(f"HOLDFAST_{name.upper()}", text)
    chosen = hosts.for_call("gpu-a", None, hosts.from_run_file(link))

    assert {"TCPKeepAlive": "no", "IdentitiesOnly": "yes", "Compression": "yes"}.items() <= chosen.options.items()
    assert (chosen.persist_s, chosen.max_age_s, chosen.multiplex) == (0.0, 3600.0, False)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [("KEEPALIVE", "30", "'30' is not a keepalive"), ("MULTIPLEX", "yes", "neither on nor off")],
)
def test_a_variable_that_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch, name: str, text: str, says: str) -> None:
    monkeypatch.setenv(f"HOLDFAST_{name}", text)

    with pytest.raises(UsageError, match=f"HOLDFAST_{name}: .*{says}"):
        hosts.for_call("gpu-a")


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (None, "15x3"),
        (measured(), "15x3"),
        (measured(idle=Idle(alive_s=300.0, dead_s=350.0)), "15x3"),
        (measured(idle=Idle(alive_s=30.0, dead_s=60.0)), "10x5"),
        (measured(idle=Idle(alive_s=1.0, dead_s=4.0)), "1x45"),
        (measured(idle=Idle(alive_s=0.0, dead_s=1.0)), "1x45"),
        (measured(trip_s=0.25), "15x5"),
        (measured(trip_s=0.15, jitter_s=0.05, loss_ratio=0.1), "15x8"),
        (measured(trip_s=30.0), "15x60"),
    ],
)
def test_the_keepalive_follows_from_what_was_measured(known: Measured | None, expected: str) -> None:
    assert hosts.show_keepalive(hosts.automatic(known)[0]) == expected


def test_compression_is_on_where_the_way_is_long_and_else_as_ssh_is_configured() -> None:
    assert hosts.choose([], measured(trip_s=0.25)).compression is True
    assert hosts.choose([], measured(trip_s=0.2)).compression is None
    assert hosts.choose([], None).compression is None
    assert hosts.choose([("x", Settings(compression="off"))], measured(trip_s=0.25)).compression is False


def test_what_is_set_is_kept_beside_what_is_known(home: Path) -> None:
    hosts.update("gpu-a", Settings(keepalive=FAST, persist_s=0.0))
    hosts.update("gpu-a", Settings(multiplex=False, max_age_s=3600.0))
    hosts.update("gpu-a", measured=measured(idle=Idle(alive_s=3.0, evidence=("it answers",)), evidence=("a", "b")))

    (known,) = hosts.load().values()

    assert known.settings == Settings(keepalive=FAST, persist_s=0.0, multiplex=False, max_age_s=3600.0)
    assert known.measured == measured(idle=Idle(alive_s=3.0, evidence=("it answers",)), evidence=("a", "b"))
    assert json.loads((home / "hosts.json").read_text())["hosts"]["gpu-a"]["settings"] == {
        "keepalive": "5x2", "persist": "no", "max_age": "1h", "multiplex": "off",
    }  # fmt: skip
    assert hosts.forget("gpu-a") and not hosts.forget("gpu-a")
    assert hosts.load() == {}


def test_many_writers_at_once_lose_nothing() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: hosts.update(f"gpu-{number}", Settings(keepalive=FAST)), range(12)))

    assert len(hosts.load()) == 12


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        ("[]", "cannot be understood"),
        ('{"version": 2, "hosts": {}}', "written by a newer holdfast"),
        ('{"version": 1, "hosts": {"a": {"settings": {"colour": "red"}}}}', "there is no setting 'colour'"),
        ('{"version": 1, "hosts": {"a": {"settings": {"persist": "10"}}}}', "'10' is not a duration"),
        ('{"version": 1, "hosts": {"a": {"measured": {"speed": 1}}}}', "cannot be understood"),
    ],
)
def test_a_file_that_is_none_is_told_and_not_overwritten(home: Path, contents: str, sentence: str) -> None:
    (home / "hosts.json").write_text(contents)

    with pytest.raises(HoldfastError, match=sentence):
        hosts.update("gpu-a", Settings(keepalive=FAST))
    assert (home / "hosts.json").read_text() == contents


def test_what_an_agent_is_told_comes_back_as_it_was() -> None:
    chosen = hosts.choose([("the command line", Settings(keepalive="off", compression="on", persist_s=5.0))])

    again = Chosen.decoded(json.loads(json.dumps(chosen.encoded())))

    assert (again, again.why) == (chosen, chosen.why)
    assert again.options["ServerAliveInterval"] == "0"


def test_only_what_a_call_insists_on_asks_for_another_connection() -> None:
    def chosen(who: str) -> Chosen:
        return hosts.choose([(who, Settings(keepalive=FAST))])

    assert hosts.differs(chosen("the command line"), Chosen())
    assert hosts.differs(chosen("the host's settings"), Chosen())
    assert not hosts.differs(chosen("the run file"), Chosen())
    assert not hosts.differs(Chosen(), chosen("the command line"))
    assert not hosts.differs(chosen("the command line"), chosen("the command line"))


def test_words_that_are_no_settings_are_told() -> None:
    for texts in ({"compression": "maybe"}, {"multiplex": "yes"}, {"keepalive": "often"}, {"persist": "long"}):
        with pytest.raises(UsageError):
            hosts.read(texts)
