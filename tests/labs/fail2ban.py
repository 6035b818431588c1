"""fail2ban with its own rules for sshd, which watches one log file and bans by writing a name down."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.labs.servers import process
from tests.needs import need_program
from tests.waiting import until

MOST_FAILURES = 5


@dataclass(frozen=True, slots=True)
class Jail:
    """One that runs."""

    folder: Path
    log: Path

    @property
    def banned(self) -> list[str]:
        """Addresses, in the order of their bans."""
        path = self.folder / "banned"
        return path.read_text().split() if path.exists() else []

    def catch_up(self, address: str) -> None:
        """Until all that is in the log was read: failures of `address` are written behind it, which is banned then."""
        with self.log.open("a") as log:
            for _ in range(MOST_FAILURES):
                log.write(f"Failed password for root from {address} port 9 ssh2\n")
        until(lambda: address in self.banned)


@contextlib.contextmanager
def _as_syslog(log: Path, copy: Path) -> Iterator[None]:
    """What comes to `log` goes to `copy` as syslog has it: by program, and the number of the connection for its pid."""
    over = threading.Event()

    def follow() -> None:
        with log.open() as new, copy.open("a") as written:
            while not over.wait(0.05):
                for line in new:
                    port = re.search(r" port (\d+)", line)
                    written.write(f"sshd[{port[1] if port else 1}]: {line}")
                written.flush()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def fail2ban(folder: Path, log: Path) -> Iterator[Jail]:
    """It bans whoever fails `MOST_FAILURES` times within ten minutes."""
    program, client = need_program("fail2ban-server"), need_program("fail2ban-client")
    for name in ("action.d", "jail.d", "fail2ban.d"):
        (folder / name).mkdir(parents=True)
    syslog = folder / "auth.log"
    syslog.touch()
    (folder / "filter.d").symlink_to("/etc/fail2ban/filter.d")
    (folder / "fail2ban.conf").write_text(
        f"[Definition]\nloglevel = INFO\nlogtarget = STDOUT\nsyslogsocket = auto\nsocket = {folder}/sock\n"
        f"pidfile = {folder}/pid\ndbfile = None\ndbpurgeage = 1d\ndbmaxmatches = 10\n[DEFAULT]\n"
    )
    (folder / "action.d" / "note.conf").write_text(f"[Definition]\nactionban = echo <ip> >> {folder}/banned\n[Init]\n")
    (folder / "jail.conf").write_text(
        "[DEFAULT]\nignoreself = false\nignoreip =\nusedns = no\nbackend = polling\n"
        f"[sshd]\nenabled = true\nfilter = sshd[mode=aggressive]\ndatepattern = {{NONE}}\nlogpath = {syslog}\n"
        f"maxretry = {MOST_FAILURES}\nfindtime = 600\nbantime = 600\naction = note\n"
    )
    asked = [client, "-s", str(folder / "sock")]
    argv = [program, "-f", "-c", str(folder), "-s", str(folder / "sock"), "-p", str(folder / "pid"), "start"]
    with _as_syslog(log, syslog), process(argv, folder / "log") as child:
        said = folder / "log"

        def watches() -> bool:
            assert child.poll() is None, said.read_text()
            return not subprocess.run([*asked, "status", "sshd"], capture_output=True).returncode

        until(watches, every_s=0.2, what=said.read_text)
        yield Jail(folder, log)
