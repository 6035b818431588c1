"""A pool of two hosts: two users of this machine, each behind an sshd of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.stores import connect
from tests.fake_nvidia import FakeNvidia
from tests.labs import sshd as lab
from tests.labs.links import own_links
from tests.labs.servers import BUCKET, Server, free_port, timeless
from tests.needs import need
from tests.waiting import until

pytestmark = pytest.mark.e2e

TINY = Path(__file__).parent / "scripts" / "tiny.py"
WAITS = "import time\ntime.sleep(600)\n"  # until its user goes
KIND = "L4711"  # of the devices that the hosts have while a test wants some
TELLS = f"import os\nprint('has', os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\n{WAITS}"


@dataclass
class Pool:
    """A person with a project, and the homes of a user on each host."""

    root: Path
    homes: dict[str, Path]
    servers: dict[str, lab.Sshd]
    drivers: dict[str, FakeNvidia]

    def holdfast(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "holdfast", *words], cwd=self.root / "project", env={**os.environ, **env},
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=110, check=False,
        )  # fmt: skip

    def start(self, name: str, *words: str, code: str = WAITS) -> subprocess.CompletedProcess[str]:
        """`holdfast run -d …` on the pool; what it said."""
        (self.root / "project" / "wait.py").write_text(code)
        return self.holdfast("run", "-d", "--name", name, *words, "--", "python3", "wait.py")

    def run_of(self, host: str, name: str) -> Path:
        """The folder of a run there."""
        return self.homes[host] / ".holdfast" / "runs" / name

    def lose(self, host: str) -> None:
        """The host dies: every process of its user at once, also those that others have just started."""
        uid = self.homes[host].stat().st_uid

        def are_dead() -> bool:
            found = [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _belongs(entry, uid)]
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not found

        until(are_dead)

    @contextlib.contextmanager
    def devices(self, *counts: int) -> Iterator[None]:
        """Each host has so many of them, of one kind."""
        for driver, count in zip(self.drivers.values(), counts, strict=True):
            driver.boot(count)
        try:
            yield
        finally:
            for driver in self.drivers.values():
                driver.boot(0)

    @contextlib.contextmanager
    def away(self, host: str) -> Iterator[None]:
        """The host answers nobody, and all on it goes on."""
        server = self.servers[host].pid
        os.kill(server, signal.SIGSTOP)
        try:
            for connection in lab.children(server):
                lab.kill_connection(connection)
            yield
        finally:
            os.kill(server, signal.SIGCONT)


def _belongs(entry: Path, uid: int) -> bool:
    """Whether the process is of that user, and not dead."""
    try:
        return entry.stat().st_uid == uid and ") Z " not in (entry / "stat").read_text()
    except OSError:
        return False


@pytest.fixture(scope="module")
def python(pool: Pool) -> list[str]:
    """Options of `run` with which its command finds torch, as users other than us."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    for program in (sys.executable, "/usr/bin/python3"):
        found = pool.holdfast("exec", "--on", "node-a", "--", f"PYTHONPATH={packages} {program} -B -c 'import torch'")
        if found.returncode == 0:
            return [
                "-e",
                f"PYTHONPATH={packages}",
                "-e",
                f"TINY={program}",
                "-e",
                "PYTHONDONTWRITEBYTECODE=1",
                "-e",
                "WORKERS=0",
            ]
    need(False, f"needs an interpreter with torch that every user may run: {found.stderr}")
    return []


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, fetched: Path) -> Iterator[Pool]:
    """`gpus`: node-a and node-b; and a host that is away."""
    need(os.geteuid() == 0, "needs root, for users with empty homes")
    root = tmp_path_factory.mktemp("laptop")
    with contextlib.ExitStack() as held:
        homes, servers, drivers, blocks = {}, {}, {}, []
        for name in ("node-a", "node-b"):
            user, homes[name] = held.enter_context(lab.person())
            drivers[name] = FakeNvidia(homes[name] / "driver", count=0, kind=KIND)
            shutil.chown(drivers[name].folder, user)
            options = {"SetEnv": f"PATH={drivers[name].folder}:/usr/local/bin:/usr/bin:/bin"}
            server = held.enter_context(lab.sshd(tmp_path_factory.mktemp(name), user, homes[name], options=options))
            servers[name] = server
            blocks.append(server.config.read_text().replace("Host node", f"Host {name}"))
        blocks.append(f"Host nowhere\n  HostName 127.0.0.1\n  Port {free_port()}\n")
        (root / "project").mkdir()
        (root / "config").write_text("\n".join(blocks))
        patch = held.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("HOLDFAST_SSH_CONFIG", str(root / "config"))
        held.enter_context(own_links(root / "home", patch, fetched))
        made = Pool(root, homes, servers, drivers)
        named = made.holdfast("host", "pool", "gpus", "node-a", "node-b")
        assert named.returncode == 0, named.stderr
        yield made


def test_each_run_goes_to_the_freest_host_and_says_why(pool: Pool) -> None:
    first, second = pool.start("first", "--on", "gpus"), pool.start("second", "--on", "gpus")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    here, there = first.stdout.partition(":")[0], second.stdout.partition(":")[0]  # which is a matter of their load
    assert (first.stdout, second.stdout, {here, there}) == (f"{here}:first\n", f"{there}:second\n", set(pool.homes))
    assert f"first goes to {here}: 0 runs, load " in first.stderr
    assert f"({there}: 0 runs, load " in first.stderr
    assert f"second goes to {there}: 0 runs, load " in second.stderr
    assert f"({here}: 1 run, load " in second.stderr
    assert pool.run_of(there, "second").is_dir()


def has(pool: Pool, host: str, name: str) -> list[str]:
    """The devices that a run there has found, once it has begun."""
    output = pool.run_of(host, name) / "output.log"
    line = until(lambda: _bytes(output), what=lambda: pool.holdfast("status", name).stdout).decode().splitlines()[0]
    return line.removeprefix("has ").split(",")


def queue(pool: Pool) -> list[tuple[list[str], list[str]]]:
    """Of each host, who has its devices, and who waits."""
    seen = json.loads(pool.holdfast("queue", "--on", "gpus", "--json").stdout)
    return [([each["run"] for each in one["devices"]], [each["run"] for each in one["waiting"]]) for one in seen]


def test_a_run_that_wants_devices_goes_where_they_are_free_and_else_waits_there(pool: Pool) -> None:
    with pool.devices(1, 2):
        both = pool.start("both", "--on", "gpus", "--gpus", f"{KIND}:2", code=TELLS)
        single = pool.start("single", "--on", "gpus", "--gpus", f"{KIND}:1", code=TELLS)
        later = pool.start("later", "--on", "gpus", "--gpus", f"{KIND}:2", code=TELLS)
        never = pool.start("never", "--on", "gpus", "--gpus", f"{KIND}:3", code=TELLS)

        assert [said.stdout for said in (both, single, later)] == ["node-b:both\n", "node-a:single\n", "node-b:later\n"]
        assert "(node-a: has 1 such device in all, and the run wants L4711:2)" in both.stderr
        assert "single goes to node-a: 1 of 1 device free, " in single.stderr
        assert (never.returncode, never.stdout) == (10, "")
        uuids = {host: [driver.uuid(n) for n in driver.all] for host, driver in pool.drivers.items()}
        assert has(pool, "node-b", "both") == uuids["node-b"]
        assert has(pool, "node-a", "single") == uuids["node-a"]
        until(lambda: queue(pool) == [(["single"], []), (["both", "both"], ["later"])], what=lambda: queue(pool))
        for name in ("both", "single"):
            assert pool.holdfast("kill", name).returncode == 0
        assert has(pool, "node-b", "later") == uuids["node-b"]
        assert pool.holdfast("kill", "later").returncode == 0


def test_a_host_that_is_away_is_told_and_the_next_one_taken(pool: Pool) -> None:
    (pool.root / "project" / "run.yaml").write_text(
        "resources: {infra: [ssh/nowhere, ssh/node-b]}\nname: planned\nrun: python3 wait.py\n"
    )

    done = pool.holdfast("run", "-f", "run.yaml", "--dry-run", "--json", "--timeout", "10s")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dir"] == str(pool.homes["node-b"] / ".holdfast" / "runs" / "planned")
    assert "planned goes to node-b: " in done.stderr
    assert "(nowhere: cannot be reached: " in done.stderr


def test_the_end_of_a_run_that_nobody_could_go_on_with_asks_no_other_host(pool: Pool) -> None:
    (pool.root / "project" / "wait.py").write_text(WAITS)
    (pool.root / "project" / "run.yaml").write_text(
        "resources: {infra: [ssh/nowhere, ssh/node-b]}\nname: unmirrored\nrun: python3 wait.py\n"
    )
    assert pool.holdfast("run", "-f", "run.yaml", "-d", "--timeout", "10s").stdout == "node-b:unmirrored\n"

    killed = pool.holdfast("kill", "unmirrored")

    assert (killed.returncode, "nowhere" in killed.stderr) == (0, False), killed.stderr


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


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[Server, Callable[[str, float], int]]]:
    """An S3 server that all hosts reach, and whose objects can be made older."""
    with timeless() as made:
        yield made


def order(pool: Pool, server: Server, name: str, program: str, *words: str, accelerators: str = "~") -> tuple[str, str]:
    """Place a run with a mirror; the host that took it, and the one that stands by."""
    resources = f"{{infra: ssh/gpus, failover: 90s, accelerators: {accelerators}}}"
    given = [word for key in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_REGION") for word in ("-e", key)]
    (pool.root / "project" / "run.yaml").write_text(
        f"name: {name}\nrun: {program}\nresources: {resources}\n"
        f"checkpoint: {{every: [5 steps], mirror: 's3://{BUCKET}/{uuid.uuid4()}/${{run}}'}}\n"
    )
    line = ["run", "-d", "--json", "-f", "run.yaml", *words, *given, "--secret", "AWS_SECRET_ACCESS_KEY"]
    done = pool.holdfast(*line, **server.environ(home=pool.root))
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["standbys"], done.stderr
    assert f"{made['standbys'][0]} stands by, should {made['host']} be silent for 1 min 30 s" in done.stderr
    return made["host"], made["standbys"][0]


def standby(pool: Pool, host: str, name: str) -> Path:
    """The folder of what stands by there."""
    return pool.homes[host] / ".holdfast" / "standbys" / name


def test_what_stands_by_is_seen_has_no_secret_in_a_file_and_ends_with_the_run(
    pool: Pool, store: tuple[Server, Callable[[str, float], int]]
) -> None:
    server, _ = store
    here, there = order(pool, server, "brief", "exec sleep 600")
    folder = standby(pool, there, "brief")
    seen = json.loads(pool.holdfast("queue", "--on", there, "--on", here, "--json").stdout)

    assert [(each["host"], [one["run"] for one in each["standbys"]]) for each in seen] == [
        (there, ["brief"]),
        (here, []),
    ]
    assert [path for path in folder.rglob("*") if server.secret.encode() in path.read_bytes()] == []
    stopped = pool.holdfast("stop", "brief", "--grace", "1s")
    assert stopped.returncode == 0, stopped.stderr
    assert not folder.exists()


def test_a_run_that_is_stopped_while_its_host_is_away_is_taken_over_by_nobody_and_stops_once_it_hears(
    pool: Pool, store: tuple[Server, Callable[[str, float], int]], python: list[str]
) -> None:
    server, _ = store
    shutil.copy(TINY, pool.root / "project" / "tiny.py")
    here, there = order(pool, server, "told", "exec $TINY tiny.py", *python, "-e", "EPOCHS=1000", "-e", "STEP_S=0.1")
    run = pool.run_of(here, "told")
    until(lambda: b'"mirrored"' in _bytes(run / "archiver.jsonl"), 60, what=lambda: _bytes(run / "output.log"))

    with pool.away(here):
        stopped = pool.holdfast("stop", "told", "--timeout", "3s")

    assert stopped.returncode == 10
    assert "it was told to stop through its mirror" in stopped.stderr
    assert not standby(pool, there, "told").exists()
    over = pool.holdfast("wait", "told")
    assert over.returncode == 75, over.stderr
    told = pool.holdfast("status", "told").stdout
    assert "stopped on request" in told, told
    mirror = json.loads((run / "plan.json").read_text())["checkpoint"]["mirror"]["url"]
    left = connect(mirror, server.environ(home=pool.root)).list("leases/")
    assert [key for key in left if key.endswith((".alive", ".stop"))] == []


@pytest.fixture
def device(pool: Pool) -> Iterator[None]:
    """Each host has one."""
    with pool.devices(1, 1):
        yield


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("waits", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_host_that_is_lost_is_replaced_and_yields_when_it_is_back(
    pool: Pool, store: tuple[Server, Callable[[str, float], int]], python: list[str], waits: bool
) -> None:
    """`waits`: for the silence itself; else the sign of life is made older."""
    (server, age), name = store, f"digits-{waits}".lower()
    shutil.copy(TINY, pool.root / "project" / "tiny.py")
    wants = {"accelerators": f"{KIND}:1"}
    here, there = order(pool, server, name, "exec $TINY tiny.py", *python, "-e", "STEP_S=0.2", **wants)
    first, second = pool.run_of(here, name), pool.run_of(there, name)
    until(lambda: b'"mirrored"' in _bytes(first / "archiver.jsonl"), 60, what=lambda: _bytes(first / "output.log"))

    pool.lose(here)
    assert waits or age(".alive", 100) == 1
    calm = _undisturbed(pool, there, python, f"calm-{waits}".lower())  # while the next look at the mirror is awaited
    until((second / "plan.json").exists, 200, what=lambda: _bytes(standby(pool, there, name) / "log"))

    over = pool.holdfast("wait", name)
    assert over.returncode == 0, over.stderr
    assert f"{name} is on {there} now: " in over.stderr
    assert '"devices_taken"' in (second / "journal.jsonl").read_text()
    records = [json.loads(line) for line in (second / "records" / "rank-00000.jsonl").read_text().splitlines()]
    assert next(line["step"] for line in records if line.get("event") == "restored") >= 5
    assert (second / "final.txt").read_text() == calm
    back = f"AWS_SECRET_ACCESS_KEY={server.secret} ~/.holdfast/bundles/holdfast resume {name} -d"
    again = pool.holdfast("exec", "--on", here, "--", back)
    assert again.returncode == 0, again.stderr
    assert pool.holdfast("wait", f"{here}:{name}").returncode == 11
    assert "another machine has taken term" in pool.holdfast("status", f"{here}:{name}").stdout


def _undisturbed(pool: Pool, host: str, python: list[str], name: str) -> str:
    """The final weights of the same training, without a mirror and without trouble."""
    words = ["run", "-d", "--on", host, "--name", name, *python, "-e", "STEP_S=0", "--", "bash", "-c"]
    done = pool.holdfast(*words, "exec $TINY tiny.py")
    assert done.returncode == 0, done.stderr
    assert pool.holdfast("wait", name).returncode == 0
    return (pool.run_of(host, name) / "final.txt").read_text()


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
