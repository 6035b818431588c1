"""Units of the systemd user manager: `holdfast-KEY.service` and, for the clock, `holdfast-KEY.timer`."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from pathlib import Path

from holdfast.commands.cronfields import AT_BOOT, parse
from holdfast.errors import HoldfastError
from holdfast.fsio import replace

NAME = "systemd"
_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


def available() -> bool:
    """Whether a user manager answers."""
    if shutil.which("systemctl") is None:
        return False
    return subprocess.run([*_CTL, "show-environment"], capture_output=True, check=False).returncode == 0


def install(key: str, when: str, argv: list[str]) -> None:
    """Write and enable the units. Raises HoldfastError."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / f"holdfast-{key}.service", service(key, argv, at_boot=when == AT_BOOT).encode())
    if when != AT_BOOT:
        replace(folder / f"holdfast-{key}.timer", timer(key, when).encode())
    _control("daemon-reload")
    if when == AT_BOOT:
        _control("enable", f"holdfast-{key}.service")
    else:
        _control("enable", "--now", f"holdfast-{key}.timer")


def remove(key: str) -> bool:
    """Disable and delete the units; whether there were any. What they started goes on. Raises HoldfastError."""
    ours = [path for path in (_folder() / f"holdfast-{key}.{kind}" for kind in ("timer", "service")) if path.exists()]
    for path in ours:
        _control("disable", *(["--now"] if path.suffix == ".timer" else []), path.name)
        path.unlink()
    if ours:
        _control("daemon-reload")
    return bool(ours)


def hint() -> str:
    """User managers end at logout unless the user lingers."""
    if Path(f"/var/lib/systemd/linger/{getpass.getuser()}").exists():
        return ""
    return "loginctl enable-linger, or it only works while you are logged in"


def service(key: str, argv: list[str], *, at_boot: bool) -> str:
    """The service unit. Runs outlive it: only its own process is ever ended. Pure."""
    command = " ".join(_quoted(word) for word in argv)
    install_section = "\n[Install]\nWantedBy=default.target\n" if at_boot else ""
    return f"""\
[Unit]
Description=holdfast {key}

[Service]
Type=oneshot
ExecStart={command}
TimeoutStartSec=infinity
KillMode=process
{install_section}"""


def timer(key: str, cron: str) -> str:
    """The timer unit. Pure."""
    calendar = "".join(f"OnCalendar={line}\n" for line in on_calendar(cron))
    return f"[Unit]\nDescription=holdfast {key}\n\n[Timer]\n{calendar}\n[Install]\nWantedBy=timers.target\n"


def on_calendar(cron: str) -> list[str]:
    """systemd's way to say five cron fields. Two lines where day and weekday are both given: cron means either."""
    allowed = parse(cron)
    _, _, day, _, weekday = cron.split()
    clock = f"{_listed(allowed['hour'], 24)}:{_listed(allowed['minute'], 60)}:00"
    month = _listed(allowed["month"], 12)
    on_days = f"*-{month}-{_listed(allowed['day'], 31)} {clock}"
    names = ",".join(_WEEKDAYS[number] for number in sorted(allowed["weekday"]))
    if weekday.startswith("*"):
        return [on_days]
    if day.startswith("*"):
        return [f"{names} {on_days}"]
    return [on_days, f"{names} *-{month}-* {clock}"]


def _listed(values: set[int], every: int) -> str:
    return "*" if len(values) == every else ",".join(f"{value:02d}" for value in sorted(values))


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


_CTL = ["systemctl", "--user"]


def _control(*words: str) -> None:
    done = subprocess.run([*_CTL, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HoldfastError(f"systemctl --user {' '.join(words)} failed: {done.stderr.strip()}")


def _folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
