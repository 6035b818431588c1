"""Runs made by hand for the verbs to look at: a home of their own, plans, journals, and a supervisor that is a fake."""

from __future__ import annotations

import json
import shutil
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from holdfast import events
from holdfast.__main__ import run as run_program
from holdfast.events import Event, to_json
from holdfast.plan import CheckpointPlan, Plan
from holdfast.runs import RunDir, home, make_runtime

NOW = 1_764_000_000.0  # 2025-11-24 16:00:00 UTC


@dataclass(frozen=True)
class Said:
    """What one command line did."""

    code: int
    out: str
    err: str


def holdfast(*argv: str, answer: str | None = None) -> Said:
    """Run the program in this process, its clock at NOW."""
    with CliRunner().isolation(input=answer) as (out, err, _):
        code = run_program(list(argv), clock=lambda: NOW)
        return Said(code, out.getvalue().decode(), err.getvalue().decode())


def make_run(name: str = "digits", *, journal: tuple[Event, ...] = (), output: bytes = b"", **plan: Any) -> RunDir:
    """A run directory as `holdfast run` leaves it, with that journal and output."""
    run = RunDir(home() / "runs" / name)
    run.code.mkdir(parents=True)
    made = Plan(
        **{
            "run": name,
            "name": name,
            "dir": str(run.root),
            "argv": ("python", "train.py"),
            "cwd": str(run.code),
            "checkpoint": CheckpointPlan(dir=str(run.checkpoints)),
            "created_s": NOW - 3600,
            **plan,
        }
    )
    run.plan.write_text(json.dumps(made.to_json()))
    lines = (events.RunCreated(run=name, t=NOW - 3600), *journal)
    run.journal.write_text("".join(json.dumps(to_json(event, number=n)) + "\n" for n, event in enumerate(lines)))
    run.output.write_bytes(output)
    return run


def status(run: str = "digits", **facts: Any) -> dict[str, Any]:
    """A status object as the supervisor gives it."""
    return {
        "run": run,
        "name": run,
        "state": "running",
        "host": "gpu-a",
        "attempt": 4,
        "restarts": 3,
        "step": 18200,
        "steps_total": 50000,
        "epoch": 7,
        "metrics": {"loss": 0.31250001, "lr": 0.001},
        "checkpoint": {"step": 18000, "tier": "disk", "age_s": 41.0},
        "findings": [],
        "exit_code": None,
        "dir": f"/home/ada/.holdfast/runs/{run}",
        "pid": 4711,
        "speed_steps_per_s": 0.96,
        "eta_s": 33120.0,
        "to_be_continued": False,
        "started_s": NOW - 3600,
        "updated_s": NOW,
        **facts,
    }


@dataclass
class FakeSupervisor:
    """Answers on control.sock: `status` to GET /status, `replies[path]` to a POST, which is noted in `asked`."""

    run: RunDir
    status: dict[str, Any]
    replies: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    on_post: Callable[[str], None] = lambda _path: None
    on_status: Callable[[int], None] = lambda _times: None  # called with how often it was asked, this time included
    statuses: int = 0

    def ends(self, state: str, exit_code: int) -> None:
        """From now on the run is over."""
        self.status = {**self.status, "state": state, "exit_code": exit_code}


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    fake: FakeSupervisor


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    client_address = ("control.sock", 0)

    def do_GET(self) -> None:
        self._body()
        if self.path == "/status":
            self.server.fake.statuses += 1
            self.server.fake.on_status(self.server.fake.statuses)
        self._answer(200, self.server.fake.status if self.path == "/status" else {})

    def do_POST(self) -> None:
        fake = self.server.fake
        body = self._body()
        fake.asked.append((self.path, body))
        fake.on_post(self.path)
        self._answer(*fake.replies.get(self.path, (200, {"number": 1})))

    def _body(self) -> Any:
        """A client that is still writing must not find the connection closed."""
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Quiet."""

    def address_string(self) -> str:
        return "local"


@contextmanager
def supervised(run: RunDir, said: dict[str, Any], **fake: Any) -> Iterator[FakeSupervisor]:
    """`run` with a fake supervisor."""
    socket_path: Path = make_runtime(run) / "control.sock"
    with _Server(str(socket_path), _Handler) as server:
        server.fake = FakeSupervisor(run, said, **fake)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.fake
        finally:
            server.shutdown()
            thread.join()
            shutil.rmtree(run.runtime)
