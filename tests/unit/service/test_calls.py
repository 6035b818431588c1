"""Verbs called in a real service over its socket: streams, exit, signals, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from holdfast import process
from holdfast.errors import HoldfastError
from holdfast.runs import RunDir
from holdfast.service.client import CallLost, Calls, NoService
from holdfast.service.server import Service
from holdfast.service.streams import unix
from holdfast.service.tasks import stop
from tests.unit.service.lab import Node, Said, ask, called, calling, node, start
from tests.waiting import until

pytestmark = pytest.mark.e2e

SH = ("shell", "digits", "--", "sh", "-c")


def test_streams_stay_apart_and_the_exit_status_is_the_verbs(service: Node, run: RunDir) -> None:
    said = called(service.socket, *SH, "echo one; echo two >&2; echo three; exit 41")

    assert (said.code, said.out, said.err) == (41, b"one\nthree\n", b"two\n")


def test_a_verb_says_there_what_it_says_here(service: Node, run: RunDir) -> None:
    listed = called(service.socket, "ps", "--all", "--json")
    unknown = called(service.socket, "status", "digitz")

    assert (listed.code, [one["run"] for one in json.loads(listed.out)]) == (0, ["digits"])
    assert (unknown.code, unknown.out) == (2, b"")
    assert b"error: no run named 'digitz'; did you mean 'digits'?" in unknown.err


def test_stdin_arrives_whole_and_its_end_does(service: Node, run: RunDir) -> None:
    data = os.urandom(9 << 20)  # more than a window

    said = called(service.socket, "shell", "digits", "--", "sha256sum", stdin=data)

    assert said.out.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_both_ways_at_once(service: Node, run: RunDir) -> None:
    data = os.urandom(9 << 20)

    said = called(service.socket, "shell", "digits", "--", "cat", stdin=data)

    assert (said.code, said.out == data) == (0, True)


def test_input_that_nobody_reads_holds_nothing_up(service: Node, run: RunDir) -> None:
    assert called(service.socket, *SH, "echo done", stdin=bytes(20 << 20)).out == b"done\n"
    assert called(service.socket, *SH, "exec <&-; echo done", stdin=bytes(20 << 20)).out == b"done\n"


def test_much_output_is_bounded_in_memory(own_service: Node, run: RunDir) -> None:
    before = own_service.memory_bytes()

    said = called(own_service.socket, "shell", "digits", "--", "head", "-c", "80M", "/dev/zero")

    assert len(said.out) == 80 << 20
    assert own_service.memory_bytes() - before < 40 << 20


def test_what_is_left_behind_is_not_waited_for(service: Node, run: RunDir) -> None:
    said = called(service.socket, *SH, "sleep 90 & echo $!")

    os.kill(int(said.out), signal.SIGKILL)  # it lives
    assert said.code == 0


def test_the_exit_is_told_behind_the_last_words(own_service: Node, run: RunDir, tmp_path: Path) -> None:
    """The service hears of both at once, and a pipe holds more than a frame does."""
    script = f"until [ -e {tmp_path}/go ]; do sleep 0.02; done; head -c 65536 /dev/zero; exit 3"

    async def main() -> Said:
        saying = asyncio.create_task(calling(own_service.socket, *SH, script))
        while not own_service.children():
            await asyncio.sleep(0.01)
        (verb,) = own_service.children()
        process.send_signal(own_service.who, signal.SIGSTOP)
        try:
            (tmp_path / "go").touch()
            await asyncio.to_thread(until, lambda: " Z " in Path(f"/proc/{verb}/stat").read_text())
        finally:
            process.send_signal(own_service.who, signal.SIGCONT)
        return await saying

    said = asyncio.run(asyncio.wait_for(main(), 100))

    assert (said.code, len(said.out)) == (3, 1 << 16)


def test_a_reader_that_waits_stops_the_verb_and_not_the_service(service: Node, run: RunDir) -> None:
    async def main() -> None:
        ours, its = os.pipe()
        calls = Calls(unix(service.socket))
        argv = [*SH, "dd if=/dev/zero bs=1M count=64 status=none; echo end >&2"]
        with os.fdopen(its, "wb", 0) as sink, Path(os.devnull).open("wb") as nothing:
            calling = asyncio.create_task(calls.call(argv, stdout=sink.fileno(), stderr=nothing.fileno()))
            for _ in range(3):  # the window is full by then, or would be
                assert (await calls.get("/ping"))["ok"]
                assert (await calls.get("/runs"))["runs"]
            assert not calling.done()
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(None, lambda: _length(ours))
            assert await calling == 0
            await calls.close()
        assert await reading == 64 << 20

    asyncio.run(asyncio.wait_for(main(), 60))
    assert service.memory_bytes() < 200 << 20


def _length(descriptor: int) -> int:
    with os.fdopen(descriptor, "rb") as pipe:
        return sum(map(len, iter(lambda: pipe.read(1 << 20), b"")))


def test_a_reader_that_leaves_ends_the_verb(service: Node, run: RunDir) -> None:
    async def main() -> None:
        ours, its = os.pipe()
        os.close(ours)
        with os.fdopen(its, "wb", 0) as sink, pytest.raises(BrokenPipeError):
            await Calls(unix(service.socket)).call([*SH, "while echo more; do :; done"], stdout=sink.fileno())

    asyncio.run(main())
    until(lambda: not service.children(), what="the end of the verb")


def test_ctrl_c_reaches_the_verb(service: Node, run: RunDir) -> None:
    async def main() -> int:
        ours, its = os.pipe()
        with os.fdopen(its, "wb", 0) as sink, os.fdopen(ours, "rb", 0) as seen:
            argv = [*SH, "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done"]
            calling = asyncio.create_task(Calls(unix(service.socket)).call(argv, stdout=sink.fileno(), signals=True))
            await asyncio.get_running_loop().run_in_executor(None, seen.read, 6)
            os.kill(os.getpid(), signal.SIGINT)
            code = await calling
            assert seen.read(7) == b"caught\n"
            return code

    assert asyncio.run(main()) == 7


def test_a_second_ctrl_c_leaves_and_the_verb_hears_of_it(service: Node, run: RunDir) -> None:
    async def main() -> None:
        ours, its = os.pipe()
        with os.fdopen(its, "wb", 0) as sink, os.fdopen(ours, "rb", 0) as seen:
            argv = [*SH, "trap '' INT; echo ready; while :; do sleep 0.05; done"]
            calling = asyncio.create_task(Calls(unix(service.socket)).call(argv, stdout=sink.fileno(), signals=True))
            await asyncio.get_running_loop().run_in_executor(None, seen.read, 6)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0)
            until(service.children)
            os.kill(os.getpid(), signal.SIGINT)
            await calling

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    until(lambda: not service.children(), what="SIGHUP at the verb")


def test_a_signal_is_told_as_a_shell_would(service: Node, run: RunDir) -> None:
    assert called(service.socket, *SH, "kill -TERM $$").code == 128 + signal.SIGTERM


def test_secrets_are_in_the_environment_of_the_verb_alone(service: Node, run: RunDir) -> None:
    secret = "v9-hush-4711"
    argv = [*SH, 'printf "$TOKEN"; tr "\\0" " " </proc/$PPID/cmdline; tr "\\0" "\\n" </proc/$PPID/environ']

    said = called(service.socket, *argv, env={"TOKEN": secret})

    assert said.out.decode().count(secret) == 1
    assert secret not in service.log()


def test_a_terminal_of_the_caller_is_one_for_the_verb(service: Node, run: RunDir) -> None:
    async def main() -> str:
        ours, its = pty.openpty()
        with os.fdopen(its, "wb", 0) as sink, os.fdopen(ours, "rb", 0) as seen:
            await Calls(unix(service.socket)).call(["ps", "--all"], stdout=sink.fileno(), columns=30)
            return (await asyncio.get_running_loop().run_in_executor(None, seen.read, 4096)).decode()

    lines = asyncio.run(main()).splitlines()

    assert lines and all(len(line) <= 30 for line in lines)
    assert any(line.endswith("…") for line in lines)


def test_a_verb_may_have_a_loop_and_threads_of_its_own(own_home: Path) -> None:
    def verb(argv: Sequence[str]) -> int:
        with ThreadPoolExecutor(2) as pool:
            asyncio.run(asyncio.sleep(0.01))
            print(sum(pool.map(int, argv)))
        return 3

    async def main() -> Said:
        path = own_home / "s.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            serving = asyncio.create_task(Service(verb=verb, status=lambda run: {}).serve(listener))
            said = await calling(path, "1", "2", "3")
            await stop(serving)
            return said

    said = asyncio.run(asyncio.wait_for(main(), 30))

    assert (said.code, said.out, said.err) == (3, b"6\n", b"")


def test_a_terminal_that_becomes_wider_is_wider_for_the_verb(own_home: Path) -> None:
    def verb(argv: Sequence[str]) -> int:
        print(os.environ["COLUMNS"])
        while os.environ["COLUMNS"] != "101":
            time.sleep(0.01)
        print("wide")
        return 0

    async def main() -> str:
        path = own_home / "s.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            serving = asyncio.create_task(Service(verb=verb, status=lambda run: {}).serve(listener))
            ours, its = pty.openpty()
            with os.fdopen(its, "wb", 0) as sink, os.fdopen(ours, "rb", 0) as seen:
                calling = asyncio.create_task(
                    Calls(unix(path)).call(["x"], stdout=sink.fileno(), columns=70, signals=True)
                )
                loop = asyncio.get_running_loop()
                said = await loop.run_in_executor(None, seen.read, 100)
                fcntl.ioctl(sink, termios.TIOCSWINSZ, struct.pack("4H", 20, 101, 0, 0))
                os.kill(os.getpid(), signal.SIGWINCH)
                assert await calling == 0
                said += await loop.run_in_executor(None, seen.read, 100)
            await stop(serving)
            return said.decode()

    assert asyncio.run(asyncio.wait_for(main(), 30)).split() == ["70", "wide"]


def test_files_of_a_verb_get_the_permissions_that_they_get_here(service: Node, run: RunDir) -> None:
    told = Path("/proc/self/status").read_text()
    ours = next(line.split()[1] for line in told.splitlines() if line.startswith("Umask:"))

    assert called(service.socket, *SH, "umask").out.split() == [ours.encode()]


def test_a_working_folder_that_is_not_there_is_told(service: Node, run: RunDir) -> None:
    said = called(service.socket, "ps", cwd="/nowhere")

    assert (said.code, said.err) == (2, b"error: /nowhere: No such file or directory\n")
    assert called(service.socket, "ps", cwd="/tmp").code == 0


def test_a_real_run_is_started_followed_and_stopped_by_calls(service: Node, own_home: Path) -> None:
    (own_home / "work").mkdir()
    script = "for i in $(seq 1 200); do echo line $i; done"
    begun = called(
        service.socket, "run", "-d", "--json", "--name", "tiny", "--", "sh", "-c", script, cwd=str(own_home / "work")
    )
    assert begun.code == 0, begun.err

    followed = called(service.socket, "logs", "-f", "tiny")
    ended = called(service.socket, "wait", "tiny")
    status = json.loads(called(service.socket, "status", "--json", "tiny").out)

    lines = [line for line in followed.out.splitlines() if line.startswith(b"line")]
    assert lines == [b"line %d" % n for n in range(1, 201)]
    assert (followed.code, ended.code, status["state"]) == (0, 0, "succeeded")
    assert ask(service.socket, lambda calls: calls.get("/runs"))["runs"][0]["state"] == "succeeded"
    until(lambda: not service.children(), what="nothing of the run below the service")


def test_nothing_is_left_after_many_calls(service: Node, run: RunDir) -> None:
    called(service.socket, "ps")
    before = Counter(service.descriptors())

    async def main() -> None:
        gate = asyncio.Semaphore(4)

        async def one() -> None:
            async with gate:
                assert (await calling(service.socket, "ps", "--json")).code == 0

        await asyncio.gather(*(one() for _ in range(200)))

    asyncio.run(main())
    until(lambda: not Counter(service.descriptors()) - before, what=lambda: str(service.descriptors()))
    until(lambda: service.children() == [])


def test_a_service_that_is_killed_is_one_clear_sentence(own_service: Node, run: RunDir) -> None:
    async def main() -> None:
        calling = asyncio.create_task(Calls(unix(own_service.socket)).call([*SH, "exec sleep 90"]))
        while len(own_service.children()) < 1:
            await asyncio.sleep(0.01)
        verbs.extend(filter(None, map(process.identity, own_service.children())))
        own_service.kill(signal.SIGKILL)
        await calling

    verbs: list[process.Identity] = []
    with pytest.raises(CallLost, match="the node's service ended while `shell` ran there"):
        asyncio.run(main())
    assert len(verbs) == 1
    until(lambda: not process.alive(verbs[0]), what="the end of the verb")


def test_a_new_service_does_not_take_the_call_of_one_that_was_killed(own_service: Node, run: RunDir) -> None:
    async def main() -> None:
        async def connect() -> object:
            if own_service.who.pid not in ended:
                return await unix(own_service.socket)()
            assert await asyncio.get_running_loop().run_in_executor(None, start) == 0
            return await unix(own_service.socket)()

        ended: list[int] = []
        ours, its = os.pipe()
        with os.fdopen(its, "wb", 0) as sink, os.fdopen(ours, "rb", 0) as seen:
            call = Calls(connect).call([*SH, "echo ready; exec sleep 60"], stdout=sink.fileno())  # type: ignore[arg-type]
            calling = asyncio.create_task(call)
            await asyncio.get_running_loop().run_in_executor(None, seen.readline)
            ended.append(own_service.who.pid)
            own_service.kill(signal.SIGKILL)
            await calling

    try:
        with pytest.raises(CallLost):
            asyncio.run(main())
    finally:
        own_service.end_next()


def test_nobody_there_is_told(own_home: Path) -> None:
    with pytest.raises(NoService):
        called(own_home / "nothing.sock", "ps")
    with pytest.raises(NoService):
        ask(own_home / "nothing.sock", lambda calls: calls.get("/ping"))


def test_what_is_no_service_is_told(own_home: Path) -> None:
    async def main() -> None:
        async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_unix_server(babble, str(own_home / "other.sock"))
        async with server:
            await Calls(unix(own_home / "other.sock")).call(["ps"])

    with pytest.raises(HoldfastError, match="no node service"):
        asyncio.run(main())


def test_a_call_that_nobody_stays_with_hears_of_it(run: RunDir) -> None:
    with node("--idle", "2") as service:

        async def main() -> None:
            calling = asyncio.create_task(Calls(unix(service.socket)).call([*SH, "exec sleep 90"]))
            while len(service.children()) < 1:
                await asyncio.sleep(0.01)
            calling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await calling

        asyncio.run(main())
        until(lambda: not service.children(), what="SIGHUP at the verb")
        until(lambda: not service.socket.exists(), what="the service to leave")


def test_a_call_costs_a_fork_and_no_start_of_an_interpreter(service: Node, run: RunDir) -> None:
    called(service.socket, "ps")
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-m", "holdfast", "ps"], capture_output=True, check=True)
    started_s = time.monotonic() - began_s
    called_s = []
    for _ in range(5):
        began_s = time.monotonic()
        called(service.socket, "ps")
        called_s.append(time.monotonic() - began_s)

    assert min(called_s) < started_s / 2  # one that nothing else has held up
