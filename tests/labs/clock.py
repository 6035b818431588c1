"""A wall clock that a test sets while a run goes on, for that run alone."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.needs import need_program


@dataclass(frozen=True, slots=True)
class Clock:
    """What is started with `env` sees this clock, and so does all that it starts."""

    library: Path
    setting: Path

    @property
    def env(self) -> dict[str, str]:
        """For the environment of a program."""
        return {"LD_PRELOAD": str(self.library), "CLOCK_FILE": str(self.setting)}

    def set(self, offset_s: int) -> None:
        """So many seconds off the machine's own clock."""
        new = self.setting.with_suffix(".new")
        new.write_text(str(offset_s))
        new.rename(self.setting)


def clock(work: Path) -> Clock:
    """A clock whose files lie in `work`, right at first."""
    library = work / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([need_program("cc"), "-O1", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    made = Clock(library, work / "clock")
    made.set(0)
    return made
