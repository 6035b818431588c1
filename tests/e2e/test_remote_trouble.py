"""Machines and logins in trouble: each a sentence with what to do, and nothing is lost. A real sshd, real disks."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.labs import sshd as lab
from tests.labs.links import own_links
from tests.needs import need

pytestmark = pytest.mark.e2e


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

    def said(self, *words: str) -> tuple[int, str]:
        """Exit code and stderr."""
        done = self.holdfast(*words)
        return done.returncode, done.stderr


@contextlib.contextmanager
def laptop_of(root: Path, fetched: Path, **more: str) -> Iterator[Laptop]:
    made = Laptop(root, more)
    made.project.mkdir(parents=True)
    (made.project / "train.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    made.home.mkdir()
    (made.home / "bundles").symlink_to(fetched)
    with pytest.MonkeyPatch.context() as patch, own_links(made.home, patch):
        yield made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[lab.Sshd, Path]]:
    """One place under several names, all but `node` and `node-b.invalid` wrong in one thing."""
    need(os.geteuid() == 0, "needs root, for a user with an empty home")
    folder = tmp_path_factory.mktemp("sshd")
    with lab.person() as (user, home), lab.sshd(folder, user, home) as running:
        for name in ("other", "host-before"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(argv, check=True)
        before = f"[127.0.0.1]:{running.port} {(folder / 'host-before.pub').read_text()}"
        (folder / "known_before").write_text(before)
        node = running.config.read_text()
        wrong = {
            "node": node,
            "node-b.invalid": node,
            "changed": node.replace("known_hosts", "known_before"),
            "stranger": node.replace("known_hosts", "known_nobody"),
            "denied": node.replace(f"{folder}/key", f"{folder}/other"),
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
    known = (server[0].folder / "known_before").read_text()

    said = laptop.said("run", "--on", host, "-d", "--", "python3", "train.py")

    assert said == (10, f"error: {sentence}\nhint: {hint}\n")
    assert server[0].log.count("Connection from") - logins == (0 if "invalid" in host else 1)
    assert (server[0].folder / "known_before").read_text() == known
    assert not (laptop.home / "remote").exists()
    assert not (server[1] / ".holdfast").exists()


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
        told = laptop.said(*order("second")), laptop.said("sync", ".", "node:there"), laptop.said("ps", "--on", "node")
        full = f"error: node: the disk of {home}/.holdfast is full; what has arrived whole stays"
        assert told[0] == told[1] == (1, f"{full}\nhint: free some space there\n")
        assert told[2] == (0, "1 ended run not shown\nhint: holdfast ps --all\n")
        assert [run.name for run in (home / ".holdfast" / "runs").iterdir()] == ["first"]

        (home / "all").unlink()
        assert laptop.holdfast(*order("second")).stdout == "node:second\n"
        assert laptop.said("sync", ".", "node:there") == (0, "")
        fill(home)
        third = home / ".holdfast" / "runs" / "third"
        hint = "hint: free some space, or set HOLDFAST_HOME to another disk"
        assert laptop.said(*order("third")) == (1, f"error: {third}: No space left on device\n{hint}\n")
        assert not third.exists()
        assert laptop.holdfast("logs", "node:first").stdout == "done\n"


def fill(home: Path) -> None:
    """No byte is left."""
    subprocess.run(["sh", "-c", f"head -c 99M /dev/zero >{home}/all"], stderr=subprocess.DEVNULL, check=False)


def order(name: str) -> list[str]:
    return ["run", "--on", "node", "-d", "--name", name, "--", "python3", "train.py"]
