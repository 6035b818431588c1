"""`holdfast host` from the command line, on a real sshd."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from holdfast.link import include
from holdfast.link.client import Links, held
from tests.children import ended
from tests.labs import sshd as lab
from tests.labs.links import kill_agent, kill_master
from tests.waiting import until

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_agent: None, server: lab.Sshd) -> Path:
    """A configuration of this test's own."""
    file = tmp_path / "ssh" / "config"
    file.parent.mkdir()
    file.write_text(server.config.read_text())
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(file))
    return file


def holdfast(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "holdfast", *words], capture_output=True, text=True, timeout=60)


def test_a_host_is_added_used_listed_and_forgotten(users: Path, server: lab.Sshd) -> None:
    before, known = users.read_text(), server.folder / "known_hosts"
    way = ["--hostname", "127.0.0.1", "--port", str(server.port), "--key", str(server.folder / "key")]
    user = before.split("User ")[1].split()[0]

    added = holdfast("host", "add", "new", *way, "--user", user, "--keepalive", "20x4", "--persist", "no")

    assert (added.returncode, users.read_text()) == (0, before)
    assert "--yes puts this line at the top" in added.stderr
    include.put("new", {**include.load()["new"], "UserKnownHostsFile": str(known)})
    assert holdfast("exec", "--on", "new", "--", "id -un").stdout == f"{user}\n"
    (fact,) = json.loads(holdfast("host", "ls", "--json").stdout)
    assert (fact["host"], fact["keepalive"], fact["settings"]) == (
        "new",
        "20x4",
        {"keepalive": "20x4", "persist": "no"},
    )
    assert holdfast("host", "config", "new", "--yes", "--compression", "on").returncode == 0
    assert users.read_text() == f"{include.line()}\n\n{before}"
    assert "Compression yes" in holdfast("host", "config", "new", "--print").stdout
    assert holdfast("host", "rm", "new").returncode == 0
    assert include.load() == {} and users.read_text().endswith(before)
    assert holdfast("host", "rm", "new").returncode == 2


def test_a_host_of_the_users_own_is_not_added_again() -> None:
    said = holdfast("host", "add", "node")

    assert said.returncode == 2
    assert "holdfast host config node" in said.stderr


def test_printing_a_block_writes_nothing(users: Path) -> None:
    shown = holdfast("host", "config", "node", "--keepalive", "40x3", "--print")

    assert "ServerAliveInterval 40" in shown.stdout
    assert not include.own_file().exists()
    assert "nothing is known of node" in holdfast("host", "rm", "node").stderr


def test_who_lives_too_deep_for_control_sockets_is_told(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="hf-", dir="/tmp") as folder:
        deep = Path(folder) / ("d" * 80)
        deep.mkdir()

        def said(below: Path, *words: str) -> str:
            (below / "config").write_text(users.read_text())
            monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(below / "config"))
            done = holdfast("host", "config", "node", *words)
            assert done.returncode == 0
            return done.stderr

        told = f"below {deep} the path of its control socket would be too long"
        hint = "hint: holdfast shares its own all the same\n"
        assert f"plain ssh shares no connection to node: {told}\n{hint}" in said(deep)
        assert "shares no connection" not in said(Path(folder))
        assert "shares no connection" not in said(deep, "--multiplex", "off")


def test_listing_starts_no_agent() -> None:
    assert holdfast("host", "ls").stderr.startswith("no host is set up here")
    assert "node" in holdfast("host", "ls", "--all").stdout
    assert held() == []


def test_reuse_is_proved_and_the_shared_connection_stays() -> None:
    with Links() as links:
        up = links.up("node")
        checked = holdfast("host", "check", "node", "--calls", "2", "--json")
        assert checked.returncode == 0, checked.stderr
        told = json.loads(checked.stdout)
        assert links.up("node").path == up.path

    cold, shared, ours = (min(way["times_s"]) for way in told["ways"])
    assert ours < cold / 3 and shared < cold
    assert told["ways"][0]["sshd_cpu_s"] is not None
    assert (told["state"], told["keepalive"], told["shared"]) == ("up", "15x3", True)


def test_a_host_that_is_not_shared_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_MULTIPLEX", "off")

    said = holdfast("host", "check", "node", "--calls", "2").stdout

    assert "no other call uses it (--multiplex off); reuse would save" in said


@pytest.mark.parametrize(("name", "state"), [("other", "up"), ("nowhere.invalid", "down")])
def test_a_watch_tells_all_of_a_link_that_another_name_has_made_and_of_one_that_is_down(
    users: Path, name: str, state: str
) -> None:
    users.write_text(users.read_text().replace("Host node", "Host node other"))
    assert holdfast("exec", "--on", "node", "--", "true").returncode == 0
    argv = [sys.executable, "-m", "holdfast", "host", "check", name, "--watch", "--json"]

    with ended(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, bufsize=1)) as watching:
        assert watching.stdout is not None
        fact = json.loads(watching.stdout.readline())

    assert (fact["host"], fact["state"]) == (name, state)
    assert set(fact) == {"host", "state", "since_s", "trip_s", "loss_ratio", "keepalive", "users", "why"}


def test_the_connection_is_watched() -> None:
    argv = [sys.executable, "-m", "holdfast", "host", "check", "node", "--watch", "--json"]
    with ended(subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, bufsize=1)) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        until(lambda: time.time() > first["since_s"] + 1.5)  # younger than that, its successor may be taken for it
        kill_master()
        seen = [json.loads(watching.stdout.readline())]
        while seen[-1]["state"] != "up" or seen[-1]["since_s"] < first["since_s"] + 1:
            seen.append(json.loads(watching.stdout.readline()))
        until(lambda: time.time() > seen[-1]["since_s"] + 1.5)
        kill_agent()
        before_s = seen[-1]["since_s"]
        while seen[-1]["state"] != "up" or seen[-1]["since_s"] < before_s + 1:
            seen.append(json.loads(watching.stdout.readline()))
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130

    assert (first["state"], first["keepalive"], first["host"]) == ("up", "15x3", "node")
    assert seen[-1]["since_s"] > first["since_s"]
    assert {"trip_s", "loss_ratio"} <= set(first)


def test_probing_keeps_what_it_found_and_changes_the_block(users: Path) -> None:
    holdfast("host", "config", "node")

    probed = holdfast("host", "probe", "node", "--idle", "--cliffs", "200ms,400ms", "--json")

    told = json.loads(probed.stdout)
    assert (told["sessions"], told["streamlocal"], told["keepalive"]) == (10, True, "15x3")
    assert (told["idle"]["alive_s"], told["idle"]["dead_s"]) == (0.4, None)
    assert "silent for 0.4 s: it answers" in probed.stderr
    (fact,) = json.loads(holdfast("host", "ls", "--json").stdout)
    assert fact["trip_s"] == told["trip_s"]
    again = json.loads(holdfast("host", "probe", "node", "--json").stdout)
    assert again["idle"] == told["idle"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["probe", "node", "--cliffs", "1s"], "--cliffs says which lengths"),
        (["probe", "node", "--idle", "--cliffs", "1"], "'1' is not a duration"),
        (["probe", "nowhere.invalid"], "nobody knows an address"),
        (["config", "a b"], "is not the name of a host"),
        (["config", "node", "--multiplex", "yes"], "neither on nor off"),
        (["check", "nowhere.invalid"], "nobody knows an address"),
    ],
)
def test_wrong_calls_are_told_in_a_sentence(words: list[str], sentence: str) -> None:
    said = holdfast("host", *words)

    assert said.returncode in (2, 10)
    assert sentence in said.stderr
    assert "bug" not in said.stderr


def test_a_call_may_have_a_keepalive_of_its_own() -> None:
    assert holdfast("exec", "--on", "node", "--keepalive", "8x3", "--", "true").returncode == 0
    assert [link["keepalive"] for link in held()] == ["8x3"]


def test_a_keepalive_that_is_none_is_told() -> None:
    said = holdfast("exec", "--on", "node", "--keepalive", "8", "--", "true")

    assert (said.returncode, held()) == (2, [])
    assert "'8' is not a keepalive" in said.stderr
