"""Runs that were started from here on other machines, so that the name alone finds them again.

`$HOLDFAST_HOME/remote/<run>.json`: {"version": 1, "places": [{"host", "id", "when", "project", "link", "ports",
"pool"}]}, the newest last; `when` is in unix seconds, `project` the folder here that the code came from, `link` and
`ports` what the run file says, `pool` every host where the run may be.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from holdfast import fsio, runs

VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run was started, or was found last. `pool`: the hosts that may go on with it, this one among them."""

    host: str
    id: str
    when: float
    project: str
    link: Mapping[str, str] = field(default_factory=dict)  # settings of the connection, as text (`link.hosts`)
    ports: Sequence[int] = ()  # that lead there while somebody is attached
    pool: tuple[str, ...] = ()

    @property
    def others(self) -> tuple[str, ...]:
        """The rest of the pool."""
        return tuple(host for host in self.pool if host != self.host)


def places(run: str) -> list[Place]:
    """Every machine on which a run of this name was started from here; a file that cannot be read knows none."""
    if not _NAME.fullmatch(run):
        return []
    try:
        told = json.loads(_file(run).read_bytes())
        return (
            [Place(**{**place, "pool": tuple(place.get("pool", ()))}) for place in told["places"]]
            if told["version"] == VERSION
            else []
        )
    except (OSError, ValueError, KeyError, TypeError):
        return []


def at(host: str, names: Sequence[str]) -> Place | None:
    """What is known of the first of these runs there, each RUN or RUN@…, that was started from here."""
    known = (place for name in names for place in places(name.partition("@")[0]) if place.host == host)
    return next(known, None)


def remember(
    host: str, run: str, project: Path, link: Mapping[str, str], ports: Sequence[int], pool: Sequence[str] = ()
) -> None:
    """A run was started there, by choice of several or not. Raises OSError."""
    kept = [place for place in places(run) if place.host != host]
    others = tuple(pool) if len(pool) > 1 else ()
    _write(run, [*kept, Place(host, run, round(time.time(), 3), str(project), link, ports, others)])


def move(run: str, place: Place, host: str) -> None:
    """It was found on another host of its pool. Raises OSError."""
    _write(run, [replace(each, host=host) if each == place else each for each in places(run) if each.host != host])


def forget(host: str, names: Sequence[str]) -> None:
    """Runs of these names are not there any more. Raises OSError."""
    for run in names:
        before = places(run)
        kept = [place for place in before if place.host != host]
        if kept:
            _write(run, kept)
        elif before:
            _file(run).unlink(missing_ok=True)


def every() -> Iterator[str]:
    """The names of all of them."""
    folder = _folder()
    yield from sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else ()


def hosts() -> list[str]:
    """Every machine on which a run was started from here."""
    return list(dict.fromkeys(place.host for run in every() for place in places(run)))


def _write(run: str, kept: Sequence[Place]) -> None:
    _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps({"version": VERSION, "places": [asdict(place) for place in kept]}, indent=1)
    fsio.replace(_file(run), text.encode())


def _file(run: str) -> Path:
    return _folder() / f"{run}.json"


def _folder() -> Path:
    return runs.home().absolute() / "remote"
