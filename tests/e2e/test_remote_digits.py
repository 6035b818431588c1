"""The real example on another machine: a user without rights, an empty home, no pip; straight, and by a jump host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import sshd as lab
from tests.labs.links import own_links
from tests.needs import need

pytestmark = pytest.mark.e2e
DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
SYSTEM = Path("/usr/bin/python3")


@pytest.fixture(scope="module")
def public() -> Iterator[Path]:
    """A folder that every user may read; pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="hf-public-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def trainers(public: Path) -> Path:
    """A Python for everybody, with what our own has installed: torch, NumPy, scikit-learn."""
    version = ".".join(map(str, sys.version_info[:2]))
    need(os.geteuid() == 0, "needs root, for users with empty homes")
    need(SYSTEM.with_name(f"python{version}").exists(), f"needs {SYSTEM} of version {version}")
    packages = public / "lib" / f"python{version}" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "ours.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    (public / "pyvenv.cfg").write_text(f"home = {SYSTEM.parent}\n")
    (public / "bin").mkdir()
    python = public / "bin" / "python"
    python.symlink_to(SYSTEM.with_name(f"python{version}"))
    return python


@pytest.fixture(scope="module")
def programs(public: Path) -> Path:
    """All of /usr/bin but pip."""
    folder = public / "programs"
    folder.mkdir()
    for program in Path("/usr/bin").iterdir():
        if not program.name.startswith("pip"):
            (folder / program.name).symlink_to(program)
    return folder


@pytest.fixture(params=["straight", "by a jump host"])
def way(
    request: pytest.FixtureRequest, tmp_path: Path, programs: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, lab.Sshd | None]]:
    """The home at the far end of `node`, and the host before it."""
    with (
        lab.person() as (user, home),
        lab.sshd(tmp_path / "sshd", user, home, options={"SetEnv": f"PATH={programs}"}) as server,
        lab.person() as (guest, lodge),
        lab.sshd(tmp_path / "gate", guest, lodge) as gate,
        own_links(tmp_path / "laptop", monkeypatch, fetched),
    ):
        jumps = request.param != "straight"
        if jumps:
            before = gate.config.read_text().replace("Host node", "Host gate")
            server.config.write_text(f"{server.config.read_text()}  ProxyJump gate\n{before}")
        monkeypatch.setenv("HOLDFAST_SSH_CONFIG", str(server.config))
        yield home, gate if jumps else None


def holdfast(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "holdfast", *words]
    return subprocess.run(argv, cwd=DIGITS, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=110)


def test_digits_are_trained_there(way: tuple[Path, lab.Sshd | None], trainers: Path) -> None:
    home, gate = way
    assert [path.name for path in home.iterdir()] == [".ssh"]
    asked = holdfast("exec", "--on", "node", "--", "command -v pip pip3 || id -u")
    assert asked.stdout == f"{home.stat().st_uid}\n", asked.stderr

    done = holdfast("run", "--on", "node", "-e", "EPOCHS=1", "--set", f"environment.python={trainers}")

    assert done.returncode == 0, done.stdout + done.stderr
    run = home / ".holdfast" / "runs" / "digits"
    assert holdfast("logs", "digits").stdout == (run / "output.log").read_text()
    assert re.search(r"^final weights sha256 [0-9a-f]{64}$", (run / "output.log").read_text(), re.MULTILINE)
    assert holdfast("ckpt", "verify", "node:digits").returncode == 0
    assert {path.owner() for path in (home / ".holdfast").rglob("*")} == {home.owner()}
    assert gate is None or "Accepted publickey" in gate.log
