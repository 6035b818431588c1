"""Names of hosts that a pattern means: the aliases of the user's ssh configuration. Files are read, nobody is asked."""

from __future__ import annotations

import difflib
import fnmatch
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.link import pools

_DEEPEST = 16  # files that include files: as ssh itself


def known(config: str = "") -> list[str]:
    """Every alias without wildcards, in the order of the files, each once."""
    files = [Path(config)] if config else [Path.home() / ".ssh" / "config", Path("/etc/ssh/ssh_config")]
    return list(dict.fromkeys(name for file in files for name in _aliases(file, 0)))


def chosen(patterns: Sequence[str], config: str = "") -> list[str]:
    """The hosts that shell patterns mean; a name without wildcards means itself, or each host of the pool of that name.

    Raises UsageError for a pattern that means none.
    """
    found: list[str] = []
    for pattern in patterns:
        if not any(mark in pattern for mark in "*?["):
            found += named(pattern, config)
            continue
        names = known(config)
        matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            near = difflib.get_close_matches(pattern.strip("*?"), names, n=1, cutoff=0.4)
            raise UsageError(
                f"no host of your ssh configuration matches {pattern!r}",
                hint=f"there is {near[0]}" if near else "name aliases under Host in ~/.ssh/config",
            )
        found += matching
    return list(dict.fromkeys(found))


def named(name: str, config: str = "") -> tuple[str, ...]:
    """The host of that name, in the configuration or not, or all of the pool. Raises UsageError where it is both."""
    members = pools.every().get(name)
    if members is None:
        return (name,)
    if name in known(config):
        raise UsageError(
            f"{name} is a pool, and a host of your ssh configuration too", hint=f"holdfast host pool {name} --rm"
        )
    return members


def near(name: str, config: str = "") -> str:
    """The alias or pool that may have been meant by a name that is none; "" where nothing is like it."""
    names = [*known(config), *pools.every()]
    return "" if name in names else next(iter(difflib.get_close_matches(name, names, n=1)), "")


def _aliases(file: Path, depth: int) -> Iterator[str]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        keyword, found = words(line)
        if keyword == "host":
            yield from (word for word in found if not any(mark in word for mark in "*?!"))
        elif keyword == "include" and depth < _DEEPEST:
            for word in found:
                path = file.parent / Path(word).expanduser()
                for included in sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))):
                    yield from _aliases(included, depth + 1)


def words(line: str) -> tuple[str, list[str]]:
    """Keyword, in small letters, and arguments: `Host a b`, `Host=a`, quotes and comments as ssh has them."""
    try:
        found = shlex.split(line.replace("=", " ", 1) if "=" in line.split("#", 1)[0] else line, comments=True)
    except ValueError:
        return "", []
    return (found[0].lower(), found[1:]) if found else ("", [])
