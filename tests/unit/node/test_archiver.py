"""The archiver as a real process, with just enough of a shim and a rank to talk to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast import process
from holdfast.checkpoint import load
from holdfast.checkpoint.slots import Result, Slot, SlotSet, State
from holdfast.heartbeat import Page, page_path
from holdfast.mirror import pull
from holdfast.mirror.push import UPLOADS
from holdfast.mirror.view import View
from holdfast.runs import RunDir, make_runtime
from holdfast.stores import connect
from tests import jsonlines
from tests.labs import faultproxy
from tests.labs.servers import BUCKET, Server
from tests.mirrors import Machine, state_of
from tests.needs import need
from tests.slotparts import contents, seal
from tests.waiting import until

START = (
    "import sys; from pathlib import Path; from holdfast.node.archiver import main; sys.exit(main(Path(sys.argv[1])))"
)
BIG = (2 << 20,) * 24


class FakeShim:
    """Listens where the shim does and hands out slots."""

    def __init__(self, run: RunDir, ranks: int = 1) -> None:
        self.path = run.runtime / "shim.sock"
        self.sets = [_make_set(rank) for rank in range(ranks)]
        self.slots = [[Slot(descriptor) for descriptor in one.slots] for one in self.sets]
        self.link: socket.socket | None = None
        self.listen()

    def listen(self) -> None:
        """Be there, for the first time or again."""
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._listener.settimeout(60)

    def welcome(
        self, *, hand_out: bool = True, offers: int = 0, meanwhile: Callable[[], object] = lambda: None
    ) -> list[SlotSet]:
        """Let the archiver offer what it keeps and say hello, and give it every rank's slots."""
        if self.link is not None:
            self.link.close()
        self.link, _ = self._listener.accept()
        self.link.settimeout(60)
        meanwhile()
        offered = [self.take_offer() for _ in range(offers)]
        assert process.receive(self.link)[0] == {"op": "hello", "role": "archiver"}
        process.send(self.link, {"ok": True})
        for one in self.sets if hand_out else []:
            process.send(self.link, {"event": "slots", "rank": one.rank}, one.fds())
        process.send(self.link, {"event": "trainer", "alive": True})
        return offered

    def take_offer(self) -> SlotSet:
        """What the archiver brings to a new shim."""
        assert self.link is not None
        message, fds = process.receive(self.link)
        assert (message["op"], message["role"]) == ("offer", "archiver")
        process.send(self.link, {"ok": True})
        return SlotSet.of(message["rank"], fds)

    def restart(self) -> None:
        """Die and be there again, with no moment in between in which nobody listens."""
        old = self._listener
        self.listen()
        old.close()
        assert self.link is not None
        self.link.close()

    def finish(self) -> None:
        """The run is over."""
        assert self.link is not None
        process.send(self.link, {"event": "finish"})

    def die(self) -> None:
        """The end of the process, as the archiver sees it."""
        self._listener.close()
        if self.link is not None:
            self.link.close()


@pytest.fixture
def shim(run: RunDir, request: pytest.FixtureRequest) -> Iterator[FakeShim]:
    fake = FakeShim(run, getattr(request, "param", 1))
    yield fake
    fake.die()
    for slots, given in zip(fake.slots, fake.sets, strict=True):
        for slot in slots:
            slot.close()
        for descriptor in given.fds():
            os.close(descriptor)


def _make_set(rank: int) -> SlotSet:
    bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
    return SlotSet.of(rank, [*bells, *(os.memfd_create(f"test-{rank}") for _ in range(3))])


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "digits")
    run.root.mkdir()
    write_plan(run, run.checkpoints)
    make_runtime(run)
    yield run
    shutil.rmtree(run.runtime)


def write_plan(run: RunDir, folder: Path, **checkpoint: Any) -> None:
    table = {"dir": str(folder), "memory": {"auto": False}, **checkpoint}
    plan = {"version": 1, "run": "digits", "name": "digits", "dir": str(run.root), "argv": ["true"], "cwd": "/"}
    run.plan.write_text(json.dumps({**plan, "checkpoint": table}))


@contextlib.contextmanager
def archiver(run: RunDir, start: str = START, *, start_new_session: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """The process, ended afterwards whatever happened."""
    with subprocess.Popen([sys.executable, "-c", start, str(run.root)], start_new_session=start_new_session) as popen:
        try:
            yield popen
        finally:
            popen.kill()


NOBODY_STARTS = """
import sys; from pathlib import Path; from holdfast import process; from holdfast.node import archiver
def start_shim(*_, **__): raise OSError("not in this test")
process.start_shim, archiver.SHIM_GONE_S = start_shim, 0.2
sys.exit(archiver.main(Path(sys.argv[1])))
"""


def test_without_a_shim_it_stays_while_a_rank_lives_and_saves_before_it_leaves(run: RunDir, shim: FakeShim) -> None:
    rank = subprocess.Popen(["sleep", "60"])
    page = Page(page_path(run.runtime, 0))
    alive = process.identity(rank.pid)
    assert alive is not None
    page.begin(pid=alive.pid, start_ticks=alive.start_ticks, rank=0, world=1, attempt=1)
    with archiver(run, NOBODY_STARTS) as popen:
        shim.welcome()
        restore(run)
        shim.die()
        save(shim, seed=1, sequence=1, step=1)
        assert ask(run, op="status")["last"]["step"] == 1
        seal(shim.slots[0][1], seed=2, sequence=2, step=2)
        rank.kill()
        rank.wait()
        assert popen.wait(60) == 0
    page.close()
    assert [info.step for info in load.checkpoints(run.checkpoints)] == [1, 2]


CLUMSY = """
import sys; from pathlib import Path; from holdfast.node import archive, archiver
def clumsily(name, *how_often):
    done, failures = getattr(archive.Archive, name), iter(how_often)
    def do(*given):
        for failure in failures:
            raise KeyError(f"{name} {failure}")
        return done(*given)
    setattr(archive.Archive, name, do)
clumsily("begin", "once"), clumsily("add_slots", "once", "twice"), clumsily("scan", "once")
sys.exit(archiver.main(Path(sys.argv[1])))
"""


def test_a_job_that_fails_in_an_unforeseen_way_is_told_and_tried_again(run: RunDir, shim: FakeShim) -> None:
    with archiver(run, CLUMSY) as popen:
        shim.welcome()
        assert restore(run)["ok"]
        save(shim, seed=1, sequence=1, step=1)
        assert ask(run, op="drain") == {"ok": True}
        assert popen.poll() is None
        shim.finish()
        assert popen.wait(60) == 0

    said = [line["message"] for line in events(run, "warning") if line["id"] == "archiver-failed"]
    failures = ("begin once", "scan once", "add_slots once", "add_slots twice")
    assert sorted(said) == sorted(f"a job of the thread archive failed: KeyError: '{one}'" for one in failures)
    assert [info.step for info in load.checkpoints(run.checkpoints)] == [1]


def ask(run: RunDir, **message: Any) -> dict[str, Any]:
    """One request to the archiver, once it listens."""

    def answer() -> dict[str, Any] | None:
        try:
            return process.request(run.runtime / "archiver.sock", message, timeout_s=30)[0]
        except (FileNotFoundError, ConnectionError):
            return None

    return until(answer)


def restore(run: RunDir, claim: str = "a", **fields: Any) -> dict[str, Any]:
    return ask(
        run, **{"op": "restore", "rank": 0, "world": 1, "attempt": 1, "claim": claim, "want": "newest", **fields}
    )


def events(run: RunDir, name: str) -> list[dict[str, Any]]:
    return jsonlines.events(run.archiver_log, name)


def save(shim: FakeShim, index: int = 0, *, rank: int = 0, **fields: Any) -> Slot:
    """Seal a slot, ring, and wait until it is given back."""
    slot = shim.slots[rank][index]
    seal(slot, rank=rank, **fields)
    os.eventfd_write(shim.sets[rank].to_archiver, 1)
    until(lambda: slot.state == State.FREE)
    return slot


def test_a_save_and_a_restore_bring_back_the_same_bytes(run: RunDir, shim: FakeShim) -> None:
    with archiver(run) as popen:
        shim.welcome()
        first = restore(run)
        assert (first["ok"], first["term"], first["slot"], first["next_sequence"]) == (True, 1, None, 1)

        slot = save(shim, seed=5, sequence=1, step=7)
        assert (slot.get("result"), slot.get("result_sequence")) == (Result.COMMITTED, 1)
        again = restore(run, claim="b", attempt=2)

        filled = shim.slots[0][again["slot"]]
        filled.refresh()
        table = filled.read_table()
        assert (filled.state, again["term"], again["step"], again["next_sequence"]) == (State.RESTORED, 2, 7, 2)
        expected = seal(slot, seed=5, sequence=1, step=7)
        assert contents(filled.view, table) == contents(slot.view, expected)
        slot.set(state=State.FREE)
        assert {**restore(run, claim="b", attempt=2), "slot": None} == {**again, "slot": None}
        assert ask(run, op="status")["last"]["step"] == 7
        popen.send_signal(signal.SIGTERM)
        shim.finish()
        assert popen.wait(60) == 0
    assert [event["step"] for event in events(run, "committed")] == [7]
    assert [event["term"] for event in events(run, "lease_taken")] == [1, 2]


def test_killed_in_the_middle_of_a_save_the_next_one_saves_the_slot(run: RunDir, shim: FakeShim) -> None:
    slot, step = shim.slots[0][0], 0
    with archiver(run) as popen:
        shim.welcome()
        restore(run)
        while slot.state != State.SEALED:
            popen.send_signal(signal.SIGCONT)
            until(lambda: slot.state == State.FREE)
            step += 1
            seal(slot, seed=step, sequence=step, step=step, sizes=BIG)
            os.eventfd_write(shim.sets[0].to_archiver, 1)
            until(lambda: list(run.checkpoints.glob("tmp/*.hfp")) or slot.state == State.FREE, every_s=0.001)
            popen.send_signal(signal.SIGSTOP)  # it may have come to the end before: then once more
            until(lambda: (process.stat_fields(popen.pid) or "?")[0] == "T")
        popen.kill()
        popen.wait()
    with archiver(run):
        shim.welcome()
        assert restore(run, claim="b")["step"] == step

        info = load.checkpoints(run.checkpoints)[-1]
        assert load.verify(run.checkpoints, info) == []
        assert slot.get("result") == Result.COMMITTED


SMALL_PACKS = """
import sys; from pathlib import Path; from holdfast.mirror import throttle; from holdfast.node.archiver import main
throttle.BURST_S = 0.05
sys.exit(main(Path(sys.argv[1])))
"""


def test_killed_while_it_sends_to_the_mirror_it_goes_on_where_it_was(
    run: RunDir, shim: FakeShim, moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, bare, url = Machine(run.checkpoints), Machine(tmp_path / "bare"), f"s3://{BUCKET}/{uuid.uuid4()}"
    ours.begin(1)
    ours.save(seed=1, sequence=1, step=10, sizes=(1_000_000,) * 16)
    write_plan(run, ours.root, mirror={"url": url, "bytes_per_s": 8_000_000})
    with faultproxy.between(moto.port) as proxy:
        for name, value in moto.environ(port=proxy.port, home=tmp_path).items():
            monkeypatch.setenv(name, value)

        def sent() -> int:
            with proxy.lock:
                return sum("/packs/" in path for path in proxy.puts)

        goal, dead = 0, threading.Event()

        def hold(method: str, path: str, number: int) -> str | None:
            if method != "PUT" or "/packs/" not in path or sent() < goal:
                return None
            dead.wait()
            return "reset"

        proxy.fault = hold  # no life is so fast that it sends all
        for _ in range(3):
            goal, dead = sent() + 2, threading.Event()
            with archiver(run, SMALL_PACKS) as popen:
                shim.welcome()
                until(lambda: sent() >= goal)  # noqa: B023 - used at once
                popen.send_signal(signal.SIGKILL)
                popen.wait()
                dead.set()
            assert events(run, "mirrored") == []
        goal = 1000
        with archiver(run, SMALL_PACKS):
            shim.welcome()
            until(lambda: events(run, "mirrored"), 60)
        store = connect(url, moto.environ(home=tmp_path))
        assert sent() <= len(store.list("packs/")) + 3 * UPLOADS
    folder = bare.folder()
    pull.choose(View(store, {}), folder, "newest")
    folder.leave()
    assert state_of(ours.root) == state_of(bare.root)


def test_a_second_archiver_leaves(run: RunDir, shim: FakeShim) -> None:
    with archiver(run) as first:
        shim.welcome()
        ask(run, op="status")
        with subprocess.Popen([sys.executable, "-c", START, str(run.root)], stderr=subprocess.PIPE) as second:
            assert second.stderr is not None
            assert f"is in use by process {first.pid}" in second.stderr.read().decode()
        assert first.poll() is None


def test_a_new_shim_is_offered_the_slots(run: RunDir, shim: FakeShim) -> None:
    with archiver(run):
        shim.welcome()
        restore(run)
        save(shim, seed=1, sequence=1, step=1)
        shim.restart()
        offered = shim.welcome(hand_out=False, offers=1)[0]

        assert [os.fstat(fd).st_ino for fd in offered.slots] == [os.fstat(fd).st_ino for fd in shim.sets[0].slots]
        save(shim, 1, seed=2, sequence=2, step=2)
    assert [event["step"] for event in events(run, "committed")] == [1, 2]


def test_a_restore_waits_for_the_sets_of_the_next_shim(run: RunDir, shim: FakeShim) -> None:
    message = {"op": "restore", "rank": 0, "world": 1, "attempt": 2, "claim": "b", "want": "newest"}
    other = _make_set(0)
    slots = [Slot(descriptor) for descriptor in other.slots]
    with archiver(run), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        shim.welcome()
        restore(run)
        seal(slots[0], seed=1, sequence=1, step=7)
        mine, shim.sets = shim.sets, [other]

        def begin() -> None:
            client.connect(str(run.runtime / "archiver.sock"))
            process.send(client, message)
            assert ask(run, op="status")["ok"]  # it has read our request

        shim.restart()
        shim.welcome(offers=1, meanwhile=begin)
        client.settimeout(30)
        answer, _ = process.receive(client)
        shim.sets = mine

    assert answer["step"] == 7
    for slot in slots:
        slot.close()
    for descriptor in other.fds():
        os.close(descriptor)


def test_a_full_disk_fails_the_save_and_the_next_one_works(run: RunDir, shim: FakeShim) -> None:
    need(os.geteuid() == 0, "mounting a small tmpfs needs root")
    folder = run.root / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    need(mounted.returncode == 0, f"mounting a small tmpfs: {mounted.stderr.decode().strip()}")
    try:
        write_plan(run, folder / "checkpoints")
        with archiver(run):
            shim.welcome()
            restore(run)
            save(shim, seed=1, sequence=1, step=1)
            failed = save(shim, seed=2, sequence=2, step=2, sizes=(2 << 20,))
            assert failed.get("result") == Result.FAILED
            assert "No space left" in failed.read_message()
            assert list((folder / "checkpoints" / "tmp").iterdir()) == []
            assert ask(run, op="status")["failed"]["step"] == 2
            save(shim, seed=3, sequence=3, step=3)
            steps = [info.step for info in load.checkpoints(folder / "checkpoints")]
            assert (steps, ask(run, op="status")["failed"]) == ([1, 3], None)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("shim", [2], indirect=True)
def test_two_ranks_commit_together_or_not_at_all(run: RunDir, shim: FakeShim) -> None:
    with archiver(run):
        shim.welcome()
        assert [restore(run, rank=rank, world=2)["term"] for rank in (0, 1)] == [1, 1]
        seal(shim.slots[0][0], rank=0, world=2, seed=1, sequence=1, step=1)
        save(shim, rank=1, world=2, seed=2, sequence=1, step=1)
        until(lambda: shim.slots[0][0].state == State.FREE)
        seal(shim.slots[0][2], rank=0, world=2, seed=4, sequence=2, step=3)
        os.eventfd_write(shim.sets[0].to_archiver, 1)
        seal(shim.slots[1][1], rank=1, world=2, seed=5, sequence=2, step=4)
        os.eventfd_write(shim.sets[1].to_archiver, 1)
        until(lambda: shim.slots[0][2].state == State.FREE)
        assert "a rank went on without it" in shim.slots[0][2].read_message()
        assert shim.slots[1][1].state == State.SEALED, "rank 0 may still come to step 4"
        assert [info.step for info in load.checkpoints(run.checkpoints)] == [1]
        answers = [restore(run, "b", rank=rank, world=2) for rank in (0, 1)]
        tables = [shim.slots[rank][answer["slot"]].read_table() for rank, answer in enumerate(answers)]
        assert [table["rank"] for table in tables] == [0, 1]


@pytest.mark.parametrize("shim", [2], indirect=True)
def test_a_save_that_not_every_rank_comes_to_is_given_up_in_time(run: RunDir, shim: FakeShim) -> None:
    write_plan(run, run.checkpoints, timeout_s=1.0)
    with archiver(run):
        shim.welcome()
        restore(run, world=2)
        alone = save(shim, rank=0, world=2, sequence=1, step=1)

    assert alone.get("result") == Result.FAILED
    assert alone.read_message() == "not every rank came within 1 s"
    (failed,) = events(run, "save_failed")
    assert failed["message"] == "not every rank came within 1 s: 1 of 2 ranks, [0]"


def test_going_back_leaves_the_later_ones_aside(run: RunDir, shim: FakeShim) -> None:
    with archiver(run):
        shim.welcome()
        restore(run)
        for step in (1, 2, 3):
            save(shim, seed=step, sequence=step, step=step)

        assert restore(run, "b", want={"step": 2})["step"] == 2
        missing = restore(run, "c", want={"step": 99})
        assert (missing["ok"], missing["exit_code"]) == (False, 12)
        assert restore(run, "d")["step"] == 2
    assert [(info.step, info.live) for info in load.checkpoints(run.checkpoints)] == [(1, True), (2, True), (3, False)]


@pytest.mark.parametrize("shim", [2], indirect=True)
def test_a_checkpoint_of_another_number_of_ranks_is_refused(run: RunDir, shim: FakeShim) -> None:
    with archiver(run):
        shim.welcome()
        restore(run)
        save(shim, seed=1, sequence=1, step=1)

        refused = restore(run, "b", world=2)
        assert (refused["ok"], refused["exit_code"]) == (False, 12)
        assert "of 1 ranks, this attempt has 2" in refused["error"]


def test_a_folder_that_another_run_uses_is_refused(run: RunDir, shim: FakeShim) -> None:
    run.checkpoints.mkdir()
    held = os.open(run.checkpoints, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with archiver(run):
        shim.welcome()
        assert restore(run)["exit_code"] == 11
        assert save(shim, seed=1, sequence=1, step=1).get("result") == Result.FAILED
        os.close(held)
        assert restore(run)["ok"]


def test_only_the_saving_thread_is_modest(run: RunDir, shim: FakeShim) -> None:
    with archiver(run) as popen:
        shim.welcome()
        ask(run, op="drain")
        niceness = {
            os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{popen.pid}/task").iterdir()
        }

        assert os.getpriority(os.PRIO_PROCESS, popen.pid) == 0
        assert niceness == {0, 10}


def test_its_session_is_modest_too(run: RunDir, shim: FakeShim) -> None:
    need(Path("/proc/self/autogroup").exists(), "needs a kernel that shares out among sessions")
    ours = Path("/proc/self/autogroup").read_text()
    with archiver(run, start_new_session=True) as popen:
        shim.welcome()
        ask(run, op="status")

        assert Path(f"/proc/{popen.pid}/autogroup").read_text().endswith(" nice 10\n")
    with archiver(run):  # in the session of somebody else
        shim.welcome()
        ask(run, op="status")
    assert Path("/proc/self/autogroup").read_text() == ours


def test_a_place_that_lets_nobody_be_modest_costs_nothing_but_that(run: RunDir, shim: FakeShim) -> None:
    start = (
        "import sys; from pathlib import Path; from holdfast.node import archiver; "
        "archiver.AUTOGROUP = Path('/'); sys.exit(archiver.main(Path(sys.argv[1])))"
    )
    with archiver(run, start, start_new_session=True):
        shim.welcome()
        assert ask(run, op="status")["ok"]


def test_a_damaged_checkpoint_is_passed_over_and_named(run: RunDir, shim: FakeShim) -> None:
    with archiver(run):
        shim.welcome()
        restore(run)
        for step in (1, 2):
            save(shim, seed=step, sequence=step, step=step)
        newest = load.checkpoints(run.checkpoints)[-1]
        path = run.checkpoints / "packs" / newest.packs[0].name[:2] / f"{newest.packs[0].name}.hfp"
        raw = bytearray(path.read_bytes())
        raw[5000] ^= 1
        path.write_bytes(raw)

        answer = restore(run, "b")
        assert (answer["step"], len(answer["fell_back"])) == (1, 1)
        assert "step 2" in answer["fell_back"][0]
    assert len(events(run, "fell_back")) == 1


def test_a_table_that_cannot_be_fails_its_save_only(run: RunDir, shim: FakeShim) -> None:
    with archiver(run):
        shim.welcome()
        restore(run)
        torn = shim.slots[0][0]
        seal(torn, seed=1, sequence=1, step=1)
        torn.set(table_offset=1 << 40)
        os.eventfd_write(shim.sets[0].to_archiver, 1)
        until(lambda: torn.state == State.FREE)

        assert (torn.get("result"), "cannot be read" in torn.read_message()) == (Result.FAILED, True)
        outside = save(shim, 1, seed=2, sequence=2, step=2, sizes=(49 << 20,))
        assert "past" in outside.read_message()
        assert save(shim, 2, seed=3, sequence=3, step=3).get("result") == Result.COMMITTED


def test_with_nothing_to_do_it_sleeps(run: RunDir, shim: FakeShim) -> None:
    with archiver(run) as popen:
        shim.welcome()
        restore(run)
        before_s, since_s = cpu_s(popen.pid), time.monotonic()

        until(lambda: time.monotonic() - since_s > 2.0)

        assert cpu_s(popen.pid) - before_s < 0.3


def cpu_s(pid: int) -> float:
    """Processor time used so far, in seconds."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
