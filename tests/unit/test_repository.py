"""The repository sets itself up on any machine: the Makefile's help, the package list, the pins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    assert targets is not None
    assert [line.split()[0] for line in listed.splitlines() if re.match(r"[a-z-]+ ", line)] == targets[1].split()


def test_a_python_without_venv_gets_a_sentence(tmp_path: Path) -> None:
    bare = tmp_path / "python3"
    bare.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    bare.chmod(0o755)
    argv = ["make", "demo", f"PYTHON={bare}", f"VENV={tmp_path / 'venv'}"]

    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_packages_are_named_and_forgiven_where_they_cannot_be_installed(tmp_path: Path) -> None:
    (tmp_path / "dpkg-query").symlink_to("/bin/false")
    for program in ("bash", "dirname", "sed", "grep", "id"):
        (tmp_path / program).symlink_to(
            subprocess.check_output(["/bin/sh", "-c", f"command -v {program}"], text=True).strip()
        )

    done = subprocess.run(
        [ROOT / ".ci/apt", "light"],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0
    assert "tmux" in done.stdout and "skipped" in done.stdout
