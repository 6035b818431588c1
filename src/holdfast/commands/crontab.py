"""Entries in the user's own crontab. Ours end in `# holdfast:KEY`; no other line is ever touched."""

from __future__ import annotations

import shlex
import shutil
import subprocess

from holdfast import runs
from holdfast.errors import HoldfastError

NAME = "cron"


def available() -> bool:
    """Whether there is a `crontab` program that lets this user in."""
    if shutil.which("crontab") is None:
        return False
    done = subprocess.run(["crontab", "-l"], capture_output=True, text=True, check=False)
    return done.returncode == 0 or "no crontab for" in done.stderr


def install(key: str, when: str, argv: list[str]) -> None:
    """Add or replace one entry. Raises HoldfastError."""
    log = runs.home().absolute() / f"{key}.log"
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    entry = f"{when} {_escaped(shlex.join(argv))} >>{_escaped(shlex.quote(str(log)))} 2>&1 {_mark(key)}"
    _write([*_others(key), entry])


def remove(key: str) -> bool:
    """Take one entry out; whether there was one. Raises HoldfastError."""
    before, after = _read(), _others(key)
    if before != after:
        _write(after)
    return before != after


def hint() -> str:
    """Cron mails nothing of it; the log says what happened."""
    return f"what it prints goes to {runs.home()}/*.log; crontab -l shows the entry"


def _escaped(command: str) -> str:
    return command.replace("%", r"\%")  # cron turns a bare % into a newline


def _mark(key: str) -> str:
    return f"# holdfast:{key}"


def _others(key: str) -> list[str]:
    return [line for line in _read() if not line.endswith(f" {_mark(key)}")]


def _read() -> list[str]:
    done = subprocess.run(["crontab", "-l"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        if "no crontab for" in done.stderr:
            return []
        raise HoldfastError(f"crontab -l failed: {done.stderr.strip()}")  # writing now would lose the user's lines
    return done.stdout.splitlines()


def _write(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(["crontab", "-"], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HoldfastError(f"crontab refused the new entry: {done.stderr.strip()}")
