"""A machine in a folder: own home, own runtime directory, the real command line, and no process left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.commands.liveness import status_of
from holdfast.process import Identity, alive, identity
from holdfast.runs import RunDir
from tests.waiting import until

ENDED = ("stopped", "succeeded", "failed")
TRAINS = ("running", "saving")
ROLES = ("shim", "supervisor", "archiver", "trainer")


@dataclass
class Box:
    """One throw-away HOLDFAST_HOME with everything that runs in it."""

    root: Path
    home_dir: Path | None = None
    short: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="hf-")))  # for sockets of others

    @property
    def env(self) -> dict[str, str]:
        """The environment of a person at this machine."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HOLDFAST_", "PYTHONPATH", "COLUMNS"))}
        kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
        return {**kept, "HOLDFAST_HOME": str(self.home), "OMP_NUM_THREADS": "1"}

    @property
    def home(self) -> Path:
        """HOLDFAST_HOME."""
        return self.home_dir or self.root / "home"

    @property
    def work(self) -> Path:
        """The folder in which the person stands."""
        folder = self.root / "work"
        folder.mkdir(exist_ok=True)
        return folder

    def write(self, name: str, text: str) -> Path:
        """A file in the working folder."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def argv(self, *args: str) -> list[str]:
        """The command line of `holdfast …`."""
        return [sys.executable, "-m", "holdfast", *args]

    def holdfast(self, *args: str, timeout_s: float = 60.0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        return subprocess.run(
            self.argv(*args),
            cwd=self.work,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )

    def start(self, *args: str, **env: str) -> RunDir:
        """`holdfast run -d …`; the new run's directory."""
        done = self.holdfast("run", "-d", "--json", *args, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        return RunDir(Path(json.loads(done.stdout)["dir"]))

    def status(self, run: RunDir) -> dict[str, Any]:
        """What `holdfast status --json` prints, found in this process: others would slow down what is looked at."""
        found: dict[str, Any] = json.loads(json.dumps(status_of(run)))
        return found

    def wait_for(self, run: RunDir, *states: str, within_s: float = 60.0) -> dict[str, Any]:
        """The status once the state is one of `states`."""

        def reached() -> dict[str, Any] | None:
            found = self.status(run)
            return found if found["state"] in states else None

        return until(reached, within_s, every_s=0.1, what=lambda: f"{run.id} {states}\n{self.tail(run)}")

    def wait_step(self, run: RunDir, step: int, within_s: float = 60.0) -> dict[str, Any]:
        """The status once `step` steps are complete."""

        def reached() -> dict[str, Any] | None:
            found = self.status(run)
            return found if found["step"] >= step or found["state"] in ENDED else None

        return until(reached, within_s, every_s=0.05, what=lambda: f"{run.id} step {step}\n{self.tail(run)}")

    def tail(self, run: RunDir, size: int = 3000) -> str:
        """The end of what the run and our own processes wrote, for failure messages."""
        found = []
        for path in (run.output, run.node_log, run.journal):
            with contextlib.suppress(OSError):
                found.append(f"--- {path.name}\n{path.read_bytes()[-size:].decode(errors='replace')}")
        return "\n".join(found)

    def process(self, run: RunDir, role: str) -> Identity | None:
        """The live process of that role, if any."""
        try:
            entry = json.loads((run.runtime / "processes.json").read_text()).get(role)
        except (OSError, ValueError):
            return None
        found = Identity(entry["pid"], entry["start_ticks"]) if entry else None
        return found if found and alive(found) else None

    def kill(self, run: RunDir, role: str, signum: int = signal.SIGKILL) -> Identity:
        """Send `signum` to the process of that role."""
        victim = until(lambda: self.process(run, role), what=lambda: f"a live {role}\n{self.tail(run)}")
        os.kill(victim.pid, signum)
        return victim

    def marked(self) -> list[int]:
        """Every process of this machine whose environment names our home."""
        needle = f"HOLDFAST_HOME={self.home}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if needle in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        """End what this box started: the shim first, which would bring the others back."""

        def none_left() -> bool:
            left = self.marked()
            for pid in left:
                if identity(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            return not left

        until(none_left, what="every process of the box gone")
        for run in (self.home / "runs").glob("*"):
            shutil.rmtree(RunDir(run).runtime, ignore_errors=True)
