"""Runs on another machine and every verb on them, through a real sshd to a user without rights and an empty home."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast import process
from holdfast.link.client import Links, held
from tests.labs import sshd as lab
from tests.labs.links import holder, kill_master, no_slot_is_taken, own_links, processes
from tests.labs.servers import free_port
from tests.needs import need
from tests.unit.link.test_jupyter import STAND_IN
from tests.waiting import until

pytestmark = pytest.mark.e2e

SECRET = "hush-4711-hush"
SCRIPT = """\
import os, sys, time
assert os.environ["TOKEN"]
stop = os.environ["STOP"]
number = 0
while not os.path.exists(stop):
    print(f"line {number} " + "x" * 1000, flush=True)
    number += 1
    time.sleep(0.002)
print("last", flush=True)
sys.exit(int(os.environ.get("EXIT", "0")))
"""

# TensorBoard is a dozen packages: these have what is used of its interface, and tell where they were started.
TENSORBOARD = """\
import os, threading
class TensorBoardServer: pass
class TensorBoard:
    def __init__(self, server_class): self.make = server_class
    def configure(self, argv): self.logs = argv[argv.index("--logdir") + 1]
    def app(self, environ, begin):
        begin("200 OK", [("Content-Type", "text/plain")])
        return [os.path.realpath(self.logs).encode()]
    def launch(self):
        threading.Thread(target=self.make(self.app, None).serve_forever, daemon=True).start()
"""
WERKZEUG = """\
import http.server, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def address_string(self): return "-"
    def do_GET(self):
        parts = self.server.app({}, lambda status, headers: self.send_response(int(status.split()[0])))
        self.end_headers()
        self.wfile.write(b"".join(parts))
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): pass
def make_server(host, port, app, threaded):
    server = Server(host.removeprefix("unix://"), Handler)
    server.app = app
    return server
"""


@dataclass
class Laptop:
    """A person with an ssh configuration and a project, and the machine at the other end."""

    root: Path
    config: Path  # of ssh
    there: Path  # the home of the user there

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("TOKEN", "COLUMNS")}
        return {**kept, "TOKEN": SECRET}

    def holdfast(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words), cwd=self.root / "project", env=self.env, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=110, check=False,
        )  # fmt: skip

    @contextlib.contextmanager
    def following(self, folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A verb that goes on for as long as the block, its output in `out` and `err` of `folder`."""
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            child = subprocess.Popen(
                self.argv(*words), cwd=self.root, env=self.env, stdout=out, stderr=err, stdin=subprocess.DEVNULL
            )
        try:
            yield child
        finally:
            child.kill()
            child.wait()

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "holdfast", *words]

    def start(self, name: str, *options: str, script: str = "train.py", **env: str) -> str:
        """Start a run that prints until `stop(name)`; `node:NAME`."""
        given = [
            word for key, value in {"STOP": str(self.flag(name)), **env}.items() for word in ("-e", f"{key}={value}")
        ]
        words = (
            "run",
            "--on",
            "node",
            "-d",
            "--name",
            name,
            "--secret",
            "TOKEN",
            *options,
            *given,
            "--",
            "python3",
            script,
        )
        done = self.holdfast(*words)
        assert (done.returncode, done.stdout) == (0, f"node:{name}\n"), done.stderr
        return done.stdout.strip()

    def flag(self, name: str) -> Path:
        return self.there / f"stop-{name}"

    def stop(self, name: str) -> None:
        self.flag(name).touch()

    def output(self, name: str) -> Path:
        """What the run there has written."""
        return self.there / ".holdfast" / "runs" / name / "output.log"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[lab.Sshd, Path]]:
    need(os.geteuid() == 0, "needs root, for a user with an empty home")
    with lab.person() as (user, home), lab.sshd(tmp_path_factory.mktemp("sshd"), user, home) as running:
        node = running.config.read_text()
        dead = node.replace("Host node", "Host nowhere").replace(f"Port {running.port}", f"Port {free_port()}")
        running.config.write_text("\n".join([node, node.replace("Host node", "Host node-b"), dead]))
        yield running, home


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory, server: tuple[lab.Sshd, Path], fetched: Path) -> Iterator[Laptop]:
    """One for all tests here: what a machine needs is sent once."""
    root = tmp_path_factory.mktemp("laptop")
    (root / "project").mkdir()
    (root / "project" / "train.py").write_text(SCRIPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOLDFAST_SSH_CONFIG", str(server[0].config))
        with own_links(root / "home", patch, fetched):
            yield Laptop(root, server[0].config, server[1])


@pytest.fixture(scope="module")
def run(laptop: Laptop) -> str:
    """A run there that goes on for as long as the tests."""
    return laptop.start("steady")


def test_a_run_is_made_there_and_found_by_its_name_alone(laptop: Laptop, run: str) -> None:
    by_place, by_name = laptop.holdfast("status", run, "--json"), laptop.holdfast("status", "steady", "--json")

    assert json.loads(by_place.stdout)["run"] == json.loads(by_name.stdout)["run"] == "steady"
    assert laptop.output("steady").exists()
    assert not (laptop.root / "home" / "runs").exists()


def test_machines_are_one_table_and_one_that_is_away_is_a_line(laptop: Laptop, run: str) -> None:
    done = laptop.holdfast("ps", "--on", "no*")

    assert done.returncode == 10
    assert [re.split(r"  +", line)[:3] for line in done.stdout.splitlines()] == [
        ["HOST", "RUN", "STATE"],
        ["node", "steady", "running"],
        ["node-b", "steady", "running"],
    ]
    assert [line for line in done.stderr.splitlines() if "nowhere" in line and "no SSH server listens" in line]


def test_the_queues_of_machines_are_one_answer(laptop: Laptop, run: str) -> None:
    done = laptop.holdfast("queue", "--on", "node*", "--json")

    assert done.returncode == 0, done.stderr
    assert [(each["host"], each["runs"] > 0, each["waiting"]) for each in json.loads(done.stdout)] == [
        ("node", True, []),
        ("node-b", True, []),
    ]


def test_an_unknown_run_gets_the_nearest_name_of_that_machine(laptop: Laptop, run: str) -> None:
    done = laptop.holdfast("status", "node:stedy")

    assert (done.returncode, done.stdout) == (2, "")
    assert "no run named 'stedy'; did you mean 'steady'?" in done.stderr
    assert "hint: holdfast ps --on node --all lists every run\n" in done.stderr


def test_what_a_verb_advises_can_be_typed_where_the_run_is_not_known_by_its_name(laptop: Laptop) -> None:
    script = "import time; time.sleep(600)"
    assert (
        laptop.holdfast("run", "--on", "node", "-d", "--name", "advised", "--", "python3", "-c", script).returncode == 0
    )
    (laptop.root / "home" / "remote" / "advised.json").unlink()
    assert laptop.holdfast("status", "advised").returncode == 2

    stopped = laptop.holdfast("stop", "node:advised")
    advised = stopped.stderr.splitlines()[-1].removeprefix("hint: ")
    resumed = laptop.holdfast(*advised.split()[1:], "-d")

    assert advised == "holdfast resume --on node advised"
    assert (resumed.returncode, resumed.stderr) == (0, "advised continues\nhint: holdfast attach --on node advised\n")
    pid = until(lambda: json.loads(laptop.holdfast("status", "node:advised", "--json").stdout)["pid"], 30)
    assert b"HOLDFAST_CALLED" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert laptop.holdfast("kill", "node:advised").returncode == 0


def test_a_verb_whose_service_was_killed_says_what_to_look_at(laptop: Laptop, run: str, tmp_path: Path) -> None:
    with laptop.following(tmp_path, "logs", "-f", run) as follower:
        until(lambda: (tmp_path / "out").stat().st_size > 0)
        for pid in processes(laptop.there, "holdfast node service"):
            with contextlib.suppress(ProcessLookupError):  # a call of it, that has just ended
                os.kill(pid, signal.SIGKILL)
        assert follower.wait(60) == 10

    said = (tmp_path / "err").read_text()
    assert "error: the node's service ended while `logs` ran there" in said
    assert "hint: holdfast ps --all --on node " in said
    assert "steady" in laptop.holdfast("ps", "--all", "--on", "node").stdout


def test_a_machine_that_does_not_answer_is_told_with_its_exit_code(laptop: Laptop) -> None:
    done = laptop.holdfast("status", "nowhere:steady", "--timeout", "5s")

    assert (done.returncode, done.stdout) == (10, "")
    assert "nowhere cannot be reached" in done.stderr


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.soak)])
def test_the_output_goes_on_at_its_byte_after_every_cut(
    laptop: Laptop, server: tuple[lab.Sshd, Path], tmp_path: Path, kills: int
) -> None:
    name = f"cut-{kills}"
    run = laptop.start(name)
    with laptop.following(tmp_path, "logs", "-f", run) as follower:
        for _ in range(kills):
            grown(tmp_path / "out")
            kill_master()
        grown(tmp_path / "out")
        agent = holder()
        assert agent is not None
        process.send_signal(agent, signal.SIGKILL)
        assert laptop.holdfast("status", run).returncode == 0  # which ends the master that was left, and has another
        grown(tmp_path / "out")
        os.kill(server[0].pid, signal.SIGSTOP)  # and for some seconds there is no way back
        kill_master()
        try:
            until(lambda: b"node: " in (tmp_path / "err").read_bytes(), 30)
        finally:
            os.kill(server[0].pid, signal.SIGCONT)
        grown(tmp_path / "out")
        laptop.stop(name)
        assert follower.wait(60) == 0

    assert digest(tmp_path / "out") == digest(laptop.output(name))
    assert (tmp_path / "out").read_bytes().endswith(b"last\n")
    said = (tmp_path / "err").read_text()
    assert re.search(r"node: \w+ for \d+ s …\n(.*\n)*node: back after \d+ s\n", said), said
    assert "shown up to byte" in said
    until(lambda: len(processes(laptop.there, "holdfast node service")) == 1)  # none of its calls goes on
    no_slot_is_taken(server[0])


def test_ctrl_c_reaches_the_verb_there_and_the_run_goes_on(laptop: Laptop, run: str, tmp_path: Path) -> None:
    with laptop.following(tmp_path, "attach", run) as follower:
        until(lambda: (tmp_path / "out").stat().st_size > 0)
        follower.send_signal(signal.SIGINT)

        assert follower.wait(20) == 130
    assert "steady keeps running" in (tmp_path / "err").read_text()
    assert json.loads(laptop.holdfast("status", run, "--json").stdout)["state"] == "running"


def test_exit_codes_are_those_of_the_verb_there(laptop: Laptop) -> None:
    run = laptop.start("failing", "--set", "restart.policy=no", EXIT="7")
    laptop.stop("failing")

    assert laptop.holdfast("wait", run).returncode == 7
    assert laptop.holdfast("save", run).returncode == 2
    assert laptop.holdfast("rm", "--force", run).returncode == 0
    assert not laptop.output("failing").exists()
    assert "no run named 'failing'" in laptop.holdfast("status", "failing").stderr


def test_the_same_command_after_a_lost_answer_makes_no_second_run(laptop: Laptop, run: str) -> None:
    index = laptop.root / "home" / "remote" / "again.json"
    index.mkdir(parents=True)  # so that the laptop fails once the run is made, as if it had died then
    with pytest.raises(AssertionError):
        laptop.start("again")
    index.rmdir()

    assert laptop.start("again") == "node:again"
    assert [path.name for path in laptop.output("again").parents[1].glob("again*")] == ["again"]
    laptop.stop("again")


def test_what_start_up_files_set_for_pythons_is_for_runs_alone(laptop: Laptop) -> None:
    (laptop.there / ".bashrc").write_text("export PYTHONHOME=/nowhere PYTHONPATH=/spoilt PYTHONWARNINGS=error\n")
    end_service(laptop)  # the next one finds them
    try:
        words = ("--", "sh", "-c", 'echo "$PYTHONHOME $PYTHONPATH $PYTHONWARNINGS"')
        done = laptop.holdfast("run", "--on", "node", "-d", "--name", "spoilt", *words)
        assert done.returncode == 0, done.stderr
        assert laptop.holdfast("wait", "node:spoilt").returncode == 0
    finally:
        (laptop.there / ".bashrc").unlink()
        end_service(laptop)

    library = laptop.output("spoilt").parent / "lib"
    assert f"/nowhere {library}:/spoilt error\n" in laptop.output("spoilt").read_text()


def test_a_terminal_of_a_run_is_there(laptop: Laptop, run: str) -> None:
    done = laptop.holdfast("shell", run, "--", "pwd")

    assert (done.returncode, done.stdout.strip()) == (0, str(laptop.output("steady").parent / "code"))


def test_jupyter_of_a_run_is_started_in_its_environment(laptop: Laptop, tmp_path: Path) -> None:
    """Its Python comes first on the PATH, whatever else the machine has; its folder is where the command runs."""
    folder = laptop.there / "lab" / "bin"
    folder.mkdir(parents=True)
    for name, text in (("python", '#!/bin/sh\nexec python3 "$@"\n'), ("jupyter", STAND_IN)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    words = ("--name", "booked", "--set", f"environment.python={folder}/python", "-e", "MARK=of-the-run")
    assert laptop.holdfast("run", "--on", "node", "-d", *words, "--", "sleep", "1000").returncode == 0

    with laptop.following(tmp_path, "jupyter", "booked", "--no-browser") as seen:
        url = until(lambda: (tmp_path / "out").read_text().strip(), 60)
        assert fetched_from(url) == str(laptop.output("booked").parent / "code")
        served = [path for path, line in contents(Path("/proc").glob("[0-9]*/cmdline")) if bytes(folder) in line]
        assert b"\0MARK=of-the-run\0" in served[0].with_name("environ").read_bytes()
        seen.send_signal(signal.SIGINT)
        assert seen.wait(30) == 130
    assert laptop.holdfast("kill", "booked").returncode == 0


def test_tensorboard_of_a_run_is_opened_here_and_outlives_a_cut(laptop: Laptop, run: str, tmp_path: Path) -> None:
    for name, text in (("tensorboard/program.py", TENSORBOARD), ("werkzeug/serving.py", WERKZEUG)):
        path = laptop.there / "board" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    python = laptop.there / "board" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={laptop.there}/board exec python3 "$@"\n')
    python.chmod(0o755)
    (laptop.there / "logs").mkdir()

    words = ("--python", str(python), "--no-browser")
    with laptop.following(tmp_path, "tensorboard", run, *words) as seen:
        url = until(lambda: (tmp_path / "out").read_text().strip(), 60)
        assert fetched_from(url) == str(laptop.output("steady").parent / "code")
        kill_master()
        until(lambda: "up again after" in (tmp_path / "err").read_text(), 40)
        assert fetched_from(url) == str(laptop.output("steady").parent / "code")
        seen.send_signal(signal.SIGINT)
        assert seen.wait(30) == 130
    with laptop.following(tmp_path, "tensorboard", "node:./logs", *words) as seen:
        assert fetched_from(until(lambda: (tmp_path / "out").read_text().strip(), 60)) == str(laptop.there / "logs")
        seen.send_signal(signal.SIGINT)
        assert seen.wait(30) == 130
    assert [line for _, line in contents(Path("/proc").glob("[0-9]*/cmdline")) if b"tensorboard-" in line] == []


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("node:./nowhere", "there is no such folder at node: ./nowhere"),
        ("node:stedy", "no run named 'stedy'; did you mean 'steady'?"),
        ("node:.", "no Python of node has tensorboard"),
        ("/tmp", "/tmp is on this machine"),
    ],
)
def test_a_tensorboard_that_cannot_be_is_told_why(laptop: Laptop, run: str, place: str, says: str) -> None:
    done = laptop.holdfast("tensorboard", place)

    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_secrets_are_in_no_file_and_no_command_line_there(laptop: Laptop, run: str) -> None:
    needle = SECRET.encode()

    assert [path for path, data in contents(laptop.there.rglob("*")) if needle in data] == []
    assert [path for path, line in contents(Path("/proc").glob("[0-9]*/cmdline")) if needle in line] == []


def test_a_mistake_is_told_before_anything_is_sent(laptop: Laptop) -> None:
    done = laptop.holdfast("run", "--on", "nowhere", "--set", "restart.max_restrats=1", "--", "python3", "train.py")

    assert done.returncode == 3
    assert "max_restrats" in done.stderr


def test_the_run_file_names_the_machine_and_the_plan_is_the_one_it_would_make(laptop: Laptop) -> None:
    (laptop.root / "project" / "run.yaml").write_text(
        "resources: {infra: ssh/node}\nname: planned\nrun: python3 train.py\n"
    )

    done = laptop.holdfast("run", "-f", "run.yaml", "--dry-run", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dir"] == str(laptop.there / ".holdfast" / "runs" / "planned")


def test_what_the_run_file_says_of_the_link_and_of_ports_holds_for_every_verb_of_the_run(
    laptop: Laptop, tmp_path: Path
) -> None:
    port = free_port()
    (laptop.root / "project" / "linked.yaml").write_text(
        "name: linked\nresources: {infra: ssh/node}\nrun: sleep 1000\n"
        f"link: {{keepalive: 25x7, persist: 5m}}\nports: [{port}]\n"
    )
    drop()
    assert laptop.holdfast("run", "-d", "-f", "linked.yaml", "--keepalive", "9x9").returncode == 0
    assert [link["keepalive"] for link in held() if link["alias"] == "node"] == ["9x9"]
    drop()  # the next connection is made by a verb that has not read the file

    with laptop.following(tmp_path, "attach", "linked") as follower:
        (forward,) = until(lambda: json.loads(laptop.holdfast("forward", "--ls", "--json").stdout)["forwards"], 40)
        link = next(link for link in held() if link["alias"] == "node")
        follower.send_signal(signal.SIGINT)
        assert follower.wait(20) == 130

    assert link["keepalive"] == "25x7"
    assert (forward["listen"], forward["connect"], forward["kept"]) == (port, f"localhost:{port}", False)
    assert f"127.0.0.1:{port} of this machine leads to the same of node" in (tmp_path / "err").read_text()
    until(lambda: json.loads(laptop.holdfast("forward", "--ls", "--json").stdout)["forwards"] == [])
    assert laptop.holdfast("kill", "linked").returncode == 0


def test_stopping_waits_for_the_end_there(laptop: Laptop, run: str) -> None:
    done = laptop.holdfast("stop", run, "--grace", "1s")

    assert done.returncode == 0, done.stderr
    assert json.loads(laptop.holdfast("status", run, "--json").stdout)["state"] == "stopped"


def end_service(laptop: Laptop) -> None:
    """Those that it has forked for calls end with it."""
    for pid in processes(laptop.there, "holdfast node service"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not processes(laptop.there, "holdfast node service"))


def fetched_from(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


def grown(path: Path) -> None:
    """Until there is more of it than now."""
    size = path.stat().st_size
    until(lambda: path.stat().st_size > size + 200_000, 40)


def drop() -> None:
    """End the link to `node`, so that whoever comes next has another."""
    with Links() as links:
        for key in [link["key"] for link in links.every() if link["alias"] == "node"]:
            links.drop(key)


def contents(paths: Iterable[Path]) -> Iterator[tuple[Path, bytes]]:
    """Of the files among them that have not gone meanwhile."""
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError:
            continue
        yield path, data


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
