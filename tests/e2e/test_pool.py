"""A pool of two hosts: two users of this machine, each behind an sshd of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.labs import sshd as lab
from tests.labs.links import own_links
from tests.labs.servers import free_port
from tests.needs import need

pytestmark = pytest.mark.e2e

WAITS = "import time\ntime.sleep(600)\n"  # until its user goes


@dataclass
class Pool:
    """A person with a project, and the homes of a user on each host."""

    root: Path
    homes: dict[str, Path]

    def holdfast(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "holdfast", *words], cwd=self.root / "project", env={**os.environ, **env},
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=110, check=False,
        )  # fmt: skip

    def start(self, name: str, *words: str, code: str = WAITS) -> subprocess.CompletedProcess[str]:
        """`holdfast run -d …` on the pool; what it said."""
        (self.root / "project" / "wait.py").write_text(code)
        return self.holdfast("run", "-d", "--name", name, *words, "--", "python3", "wait.py")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, fetched: Path) -> Iterator[Pool]:
    """`gpus`: node-a and node-b; and a host that is away."""
    need(os.geteuid() == 0, "needs root, for users with empty homes")
    root = tmp_path_factory.mktemp("laptop")
    with contextlib.ExitStack() as held:
        homes, blocks = {}, []
        for name in ("node-a", "node-b"):
            user, homes[name] = held.enter_context(lab.person())
            server = held.enter_context(lab.sshd(tmp_path_factory.mktemp(name), user, homes[name]))
            blocks.append(server.config.read_text().replace("Host node", f"Host {name}"))
        blocks.append(f"Host nowhere\n  HostName 127.0.0.1\n  Port {free_port()}\n")
        for folder in ("project", "home"):
            (root / folder).mkdir()
        (root / "home" / "bundles").symlink_to(fetched)
        (root / "config").write_text("\n".join(blocks))
        patch = held.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("HOLDFAST_SSH_CONFIG", str(root / "config"))
        held.enter_context(own_links(root / "home", patch))
        made = Pool(root, homes)
        named = made.holdfast("host", "pool", "gpus", "node-a", "node-b")
        assert named.returncode == 0, named.stderr
        yield made


def test_each_run_goes_to_the_freest_host_and_says_why(pool: Pool) -> None:
    first, second = pool.start("first", "--on", "gpus"), pool.start("second", "--on", "gpus")

    assert (first.stdout, second.stdout) == ("node-a:first\n", "node-b:second\n"), first.stderr + second.stderr
    assert "first goes to node-a: 0 runs, load " in first.stderr
    assert "(node-b: 0 runs, load " in first.stderr
    assert "(node-a: 1 run, load " in second.stderr
    assert (pool.homes["node-b"] / ".holdfast" / "runs" / "second").is_dir()


def test_a_host_that_is_away_is_told_and_the_next_one_taken(pool: Pool) -> None:
    (pool.root / "project" / "run.yaml").write_text(
        "resources: {infra: [ssh/nowhere, ssh/node-b]}\nname: planned\nrun: python3 wait.py\n"
    )

    done = pool.holdfast("run", "-f", "run.yaml", "--dry-run", "--json", "--timeout", "10s")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dir"] == str(pool.homes["node-b"] / ".holdfast" / "runs" / "planned")
    assert "planned goes to node-b: " in done.stderr
    assert "(nowhere: cannot be reached: " in done.stderr


def test_where_nobody_can_be_reached_all_reasons_are_told(pool: Pool) -> None:
    (pool.root / "project" / "run.yaml").write_text(
        "resources: {infra: [ssh/nowhere, ssh/not-there]}\nname: planned\nrun: python3 wait.py\n"
    )

    done = pool.holdfast("run", "-f", "run.yaml", "-d", "--timeout", "5s")

    assert (done.returncode, done.stdout) == (10, "")
    assert "nowhere: cannot be reached" in done.stderr
    assert "not-there: cannot be reached" in done.stderr


def test_one_line_reaches_every_host_of_the_pool(pool: Pool) -> None:
    done = pool.holdfast("exec", "--on", "gpus", "--", "echo $HOME")

    assert done.stdout == "".join(f"{name}: {home}\n" for name, home in pool.homes.items())


def test_the_same_order_again_goes_to_the_host_that_has_not_confirmed_it(pool: Pool) -> None:
    index = pool.root / "home" / "remote" / "again.json"
    index.mkdir(parents=True)  # so that the laptop fails once the run is made, as if it had died then
    first = pool.start("again", "--on", "gpus")
    index.rmdir()
    assert first.returncode == 1
    taken = next(name for name in pool.homes if f"goes to {name}" in first.stderr)

    again = pool.start("again", "--on", "gpus")

    assert again.stdout == f"{taken}:again\n", again.stderr
    assert [path.name for home in pool.homes.values() for path in home.glob(".holdfast/runs/again*")] == ["again"]
