"""Machines and logins in trouble: each a sentence with what to do, and nothing is lost. A real sshd, real disks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from holdfast import plan
from holdfast.runs import RunDir
from tests.labs import sshd as lab
from tests.labs.clock import Clock, clock
from tests.labs.links import own_links, processes
from tests.needs import need
from tests.waiting import until

pytestmark = pytest.mark.e2e
LONG = "a" * 200


@dataclass(frozen=True, slots=True)
class Laptop:
    """A person with a project."""

    root: Path
    more: dict[str, str] = field(default_factory=dict)  # environment

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def project(self) -> Path:
        return self.root / "project"

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        return {**kept, **self.more, "HOLDFAST_HOME": str(self.home)}

    def holdfast(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "holdfast", *words], cwd=self.project, env=self.env, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip

    @contextlib.contextmanager
    def following(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A verb that goes on, for as long as the block."""
        child = subprocess.Popen(
            [sys.executable, "-m", "holdfast", *words], cwd=self.project, env=self.env, text=True, bufsize=1,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        with child:
            try:
                yield child
            finally:
                child.kill()

    def said(self, *words: str) -> tuple[int, str]:
        """Exit code and stderr."""
        done = self.holdfast(*words)
        return done.returncode, done.stderr


@contextlib.contextmanager
def laptop_of(root: Path, fetched: Path, **more: str) -> Iterator[Laptop]:
    made = Laptop(root, more)
    made.project.mkdir(parents=True)
    (made.project / "train.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    with pytest.MonkeyPatch.context() as patch, own_links(made.home, patch, fetched):
        yield made


@pytest.fixture(scope="module")
def wall() -> Iterator[Clock]:
    """The node's clock, right at first; where every user may read it."""
    with tempfile.TemporaryDirectory(prefix="hf-clock-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield clock(Path(folder))


@pytest.fixture(scope="module")
def server(wall: Clock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[lab.Sshd, Path]]:
    """One place under several names, some wrong in one thing; a test may set its clock."""
    need(os.geteuid() == 0, "needs root, for a user with an empty home")
    folder = tmp_path_factory.mktemp("sshd")
    options = {"SetEnv": " ".join(f"{name}={value}" for name, value in wall.env.items())}
    with lab.person() as (user, home), lab.sshd(folder, user, home, options=options) as running:
        for name in ("other", "host-before"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(argv, check=True)
        before = f"[127.0.0.1]:{running.port} {(folder / 'host-before.pub').read_text()}"
        (folder / "known_before").write_text(before)
        node = running.config.read_text()
        wrong = {
            "node": node,
            "node-b.invalid": node,
            LONG: node,
            "changed": node.replace("known_hosts", "known_before"),
            "stranger": node.replace("known_hosts", "known_nobody"),
            "denied": node.replace(f"{folder}/key", f"{folder}/other"),
            "far": f"{node}  ProxyJump gate\n",
            "gate": f"{node}  ControlPath /tmp/{LONG}\n",
        }
        text = "\n".join(block.replace("Host node", f"Host {name}") for name, block in wrong.items())
        running.config.write_text(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOLDFAST_SSH_CONFIG", str(running.config))
            yield running, home


@pytest.fixture(scope="module")
def laptop(server: tuple[lab.Sshd, Path], fetched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    with laptop_of(tmp_path_factory.mktemp("laptop"), fetched) as made:
        yield made


@pytest.mark.parametrize(
    ("host", "sentence", "hint"),
    [
        (
            "changed",
            "changed shows another host key than before: it was installed anew, or somebody stands in between",
            "ask who looks after it; ssh changed then says which line of known_hosts to remove",
        ),
        ("stranger", "the host key of stranger is not known", "ssh stranger once"),
        (
            "far",
            "your ssh configuration has too long a ControlPath on the way to far",
            "shorten it there, for example ~/.ssh/%C",
        ),
        ("denied", "denied takes none of our keys (it offers publickey)", "ssh-copy-id denied, or ssh-add your key"),
        (
            "node_b.invalid",
            "node_b.invalid cannot be reached: nobody knows an address of node_b.invalid",
            "did you mean node-b.invalid?",
        ),
    ],
)
def test_a_host_that_a_person_must_mend_is_a_sentence_and_nothing_is_left(
    laptop: Laptop, server: tuple[lab.Sshd, Path], host: str, sentence: str, hint: str
) -> None:
    logins = server[0].log.count("Connection from")
    known, there = (server[0].folder / "known_before").read_text(), sorted(server[1].rglob("*"))

    said = laptop.said("run", "--on", host, "-d", "--", "python3", "train.py")

    assert said == (10, f"error: {sentence}\nhint: {hint}\n")
    assert server[0].log.count("Connection from") - logins == (0 if host in ("far", "node_b.invalid") else 1)
    assert (server[0].folder / "known_before").read_text() == known
    assert not (laptop.home / "remote").exists()
    assert sorted(server[1].rglob("*")) == there


@pytest.mark.parametrize("is_known", [False, True])
def test_a_shell_that_talks_without_end_is_heard_for_as_long_as_one_said(
    laptop: Laptop, server: tuple[lab.Sshd, Path], is_known: bool
) -> None:
    if is_known:
        assert laptop.holdfast("ps", "--on", "node-b.invalid").returncode == 0
        for pid in processes(server[1], "holdfast node service"):
            os.kill(pid, signal.SIGKILL)
    (server[1] / ".bashrc").write_text("while :; do echo noise; done\n")
    try:
        status, said = laptop.said("ps", "--on", "node-b.invalid", "--timeout", "3s")
        until(lambda: not processes(server[1], "bash"))
    finally:
        (server[1] / ".bashrc").unlink()

    assert status == 10
    assert re.search(r"did not end within 3 s|nothing of ours has answered there for 3 s", said), said


def test_paths_may_be_as_long_as_they_like(server: tuple[lab.Sshd, Path], fetched: Path, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    (deep / "tmp").mkdir(parents=True)
    with laptop_of(deep / "laptop", fetched, TMPDIR=str(deep / "tmp")) as laptop:
        done = laptop.holdfast("exec", "--on", LONG, "--", "echo there")
        assert (done.stdout, done.stderr) == ("there\n", "")
        assert laptop.said("ps", "--on", LONG)[0] == 0


def test_a_clock_that_is_hours_off_is_told_and_misleads_nobody(
    server: tuple[lab.Sshd, Path], wall: Clock, fetched: Path, tmp_path: Path
) -> None:
    with laptop_of(tmp_path / "laptop", fetched) as laptop:
        wall.set(5 * 3600)
        try:
            code, said = laptop.said(*order("skewed"))
            assert code == 0
            assert re.match(r"node: its clock is (5 h|4 h 59 min) ahead of this machine's\n", said), said
            output = server[1] / ".holdfast" / "runs" / "skewed" / "output.log"
            until(lambda: output.exists() and output.read_text() == "begun\n")
            assert laptop.holdfast("logs", "skewed", "--since", "1m").stdout == "begun\n"
            explained = laptop.holdfast("explain", "skewed").stdout
            assert re.search(r"^attempt 1  .*, ([\d.]+ m?s|[1-9] min .*) so far,", explained)
            moved = [
                json.loads(laptop.holdfast("sync", ".", "node:skewed", "--json").stdout)["moved_bytes"]
                for _ in range(2)
            ]
            assert (moved[0] > 0, moved[1]) == (True, 0)
        finally:
            wall.set(0)
        assert laptop.said("kill", "skewed")[0] == 0


@pytest.mark.soak
def test_a_laptop_with_a_newer_holdfast_touches_no_run_and_the_older_one_is_told(
    laptop: Laptop, server: tuple[lab.Sshd, Path], fetched: Path, tmp_path: Path
) -> None:
    package = tmp_path / "newer" / "holdfast"
    shutil.copytree(Path(plan.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (package / "plan.py").read_text()
    (package / "plan.py").write_text(text.replace(f"\nVERSION = {plan.VERSION}\n", "\nVERSION = 99\n"))
    with laptop_of(tmp_path / "newer", fetched, PYTHONPATH=str(package.parent)) as newer:
        assert laptop.holdfast(*order("older")).stdout == "node:older\n"
        older = carriers(server[1], "older")
        assert newer.holdfast(*order("new")).stdout == "node:new\n"
        new = carriers(server[1], "new")
        told = f"its plan has version 99, this holdfast reads {plan.VERSION}"
        hint = "update holdfast on the machine you call it from; the run itself is not touched"
        said = f"error: the run was made by a newer holdfast: {told}\nhint: {hint}\n"

        until(lambda: laptop.holdfast("logs", "node:new").stdout == "begun\n")
        assert [laptop.said(verb, "node:new") for verb in ("stop", "kill", "save")] == [(1, said)] * 3

        assert (carriers(server[1], "older"), carriers(server[1], "new")) == (older, new)
        assert newer.said("kill", "node:new")[0] == laptop.said("kill", "node:older")[0] == 0


def test_two_laptops_look_at_one_run_and_one_of_them_stops_it(
    laptop: Laptop, server: tuple[lab.Sshd, Path], fetched: Path, tmp_path: Path
) -> None:
    with laptop_of(tmp_path / "second", fetched) as second:
        assert laptop.holdfast(*order("shared")).stdout == "node:shared\n"
        with laptop.following("attach", "node:shared") as one, second.following("logs", "-f", "node:shared") as two:
            for each in (one, two):
                assert each.stdout is not None and each.stdout.readline() == "begun\n"
            assert second.said("stop", "node:shared", "--grace", "1s")[0] == 0
            assert one.communicate(timeout=60)[1].endswith(
                "shared stopped at step 0, epoch 0\nhint: holdfast resume --on node shared\n"
            )
            assert (one.returncode, two.wait(60)) == (143, 0)


def carriers(home: Path, run: str) -> dict[str, object]:
    """The processes of a run there, by their role, once all are there."""
    runtime = RunDir(home / ".holdfast" / "runs" / run).runtime.name
    file = Path(f"/tmp/holdfast-{home.stat().st_uid}/{runtime}/processes.json")

    def found() -> dict[str, object]:
        roles = json.loads(file.read_text()) if file.exists() else {}
        return {role: roles.get(role) for role in ("shim", "supervisor", "trainer")}

    until(lambda: all(found().values()))
    return found()


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[tuple[Path, lab.Sshd]]:
    """A machine where homes are small, and no file in them can be run."""
    need(os.geteuid() == 0, "needs root to mount")
    with lab.person() as (user, home):
        uid = home.stat().st_uid
        words = f"size=4m,noexec,uid={uid},gid={uid},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", words, "tmpfs", str(home)], check=True)
        try:
            with lab.sshd(tmp_path / "sshd", user, home) as server:
                yield home, server
        finally:
            subprocess.run(["pkill", "-KILL", "-u", user], check=False)
            subprocess.run(["umount", "-l", str(home)], check=True)
            shutil.rmtree(f"/var/tmp/holdfast-{uid}", ignore_errors=True)


def test_a_noexec_home_that_is_full_loses_nothing(
    cramped: tuple[Path, lab.Sshd], tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, server = cramped
    monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(server.config))
    with laptop_of(tmp_path / "laptop", fetched) as laptop:
        first = laptop.holdfast("run", "--on", "node", "--name", "first", "--", "sh", "-c", "echo done")
        assert (first.returncode, first.stdout) == (0, "done\n"), first.stderr
        code = f"/var/tmp/holdfast-{home.stat().st_uid}"
        assert f"node: {home}/.holdfast is mounted noexec: our code lies in {code} instead\n" in first.stderr

        fill(home)
        runs = home / ".holdfast" / "runs"
        hint = "hint: free some space, or set HOLDFAST_HOME to another disk"
        said = f"error: {runs / 'second'}: No space left on device\n{hint}\nthat was the answer of node\n"
        assert laptop.said(*order("second")) == (1, said)
        full = f"error: node: the disk of {home}/.holdfast is full; what has arrived whole stays"
        assert laptop.said("sync", ".", "node:there") == (1, f"{full}\nhint: free some space there\n")
        assert laptop.said("ps", "--on", "node") == (0, "1 ended run not shown\nhint: holdfast ps --on node --all\n")
        assert [run.name for run in runs.iterdir()] == ["first"]

        (home / "all").unlink()
        assert laptop.holdfast(*order("second")).stdout == "node:second\n"
        assert laptop.said("sync", ".", "node:there") == (0, "")
        fill(home)
        (laptop.project / "new.py").write_text("new = True\n")
        (there,) = (home / ".holdfast" / "workspaces").iterdir()
        lacking = f"error: node: 11 B are to come, and {there} has 0 B free\n"
        hint = "hint: free some space there, or leave something out by .holdfastignore\n"
        assert laptop.said(*order("third")) == (1, lacking + hint)
        assert not (runs / "third").exists()
        assert laptop.holdfast("logs", "node:first").stdout == "done\n"


def fill(home: Path) -> None:
    """No byte is left."""
    subprocess.run(["sh", "-c", f"head -c 99M /dev/zero >{home}/all"], stderr=subprocess.DEVNULL, check=False)


def order(name: str) -> list[str]:
    return ["run", "--on", "node", "-d", "--name", name, "--", "python3", "train.py"]
