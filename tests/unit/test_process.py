"""Identity, local requests, and starting the shim's way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast import process
from holdfast.errors import HoldfastError
from holdfast.process import Identity
from holdfast.runs import RunDir
from tests.waiting import until


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_process_is_itself_until_it_ends() -> None:
    child = sleeper()
    who = process.identity(child.pid)
    assert who is not None
    assert process.alive(who)

    child.kill()
    until(lambda: process.identity(child.pid) is None)  # a zombie is nobody

    assert not process.alive(who)
    child.wait()


def test_a_reused_pid_is_somebody_else() -> None:
    assert not process.alive(Identity(os.getpid(), 1))
    assert not process.send_signal(Identity(os.getpid(), 1), signal.SIGKILL)


def test_environment_is_what_it_was_started_with() -> None:
    with subprocess.Popen(["sleep", "60"], env={"HOLDFAST_ATTEMPT": "7"}) as child:
        found = until(lambda: process.environment(child.pid))
        child.kill()

    assert found == {"HOLDFAST_ATTEMPT": "7"}


def test_request_carries_descriptors_both_ways(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def echo() -> None:
        link, _ = listener.accept()
        with link:
            message, fds = process.receive(link)
            process.send(link, {"ok": True, "told": message}, fds)
            for descriptor in fds:
                os.close(descriptor)

    server = threading.Thread(target=echo)
    server.start()
    sent = os.memfd_create("told")
    reply, (received,) = process.request(tmp_path / "s", {"op": "x"}, fds=[sent], timeout_s=5)
    server.join()

    assert reply == {"ok": True, "told": {"op": "x"}}
    assert os.fstat(received).st_ino == os.fstat(sent).st_ino
    for descriptor in (sent, received):
        os.close(descriptor)
    listener.close()


def test_request_times_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        with pytest.raises(TimeoutError):
            process.request(tmp_path / "s", {"op": "x"}, timeout_s=0.05)


def test_a_shim_that_cannot_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such thing as holdfast >&2\nexit 1\n")
    python.chmod(0o700)

    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(HoldfastError, match="no such thing as holdfast"):
        process.start_shim(RunDir(tmp_path))
