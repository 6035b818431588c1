"""Our own file of ssh's configuration, beside the user's: `holdfast.conf`, a block for each host, never `Host *`.

Plain ssh, scp, rsync and editors read it by one `Include` line at the top of the user's configuration, the only byte of
that we ever write. Without the line holdfast hands ssh a file that includes ours, the user's and the system's.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from holdfast import fsio, runs
from holdfast.errors import HoldfastError, UsageError
from holdfast.link import names
from holdfast.link.hosts import Host, automatic, choose
from holdfast.units import Keepalive

PLAIN = Keepalive(interval_s=60, count=5)  # for plain ssh, until the way was probed
_HEAD = "# Written by `holdfast host`: blocks are replaced there. Your own settings belong into ~/.ssh/config.\n"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WAY = ("HostName", "User", "Port", "ProxyJump", "IdentityFile", "IdentitiesOnly")
_HASH_BYTES = 40  # of %C
_SOCKET_BYTES = 90  # of a control path, see target.MOST_PATH_BYTES

Block = dict[str, str]  # keyword → value, in the order of the file


def ssh_folder() -> Path:
    """~/.ssh as ssh sees it, which asks the password database and not HOME."""
    return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh"


def users_file() -> Path:
    """The user's own configuration."""
    return Path(os.environ.get("HOLDFAST_SSH_CONFIG") or ssh_folder() / "config")


def own_file() -> Path:
    """Ours, beside it."""
    return users_file().with_name("holdfast.conf")


def line() -> str:
    """What the user's configuration needs at its top."""
    return f"Include {_quoted(str(own_file()))}"


def is_included() -> bool:
    """Whether the user's configuration has the line before anything that could keep it from counting."""
    try:
        lines = users_file().read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return False
    for each in lines:
        keyword, words = names.words(each)
        if keyword in ("host", "match"):
            return False
        if keyword == "include" and str(own_file()) in [str(Path(word).expanduser()) for word in words]:
            return True
    return False


def include() -> None:
    """Put the line at the top of the user's configuration; every byte of it stays as it is. Raises OSError."""
    if is_included():
        return
    file = users_file().resolve()  # one that is a link into somebody's dotfiles stays one
    file.parent.mkdir(mode=0o700, exist_ok=True)
    before = file.read_bytes() if file.exists() else b""
    fsio.replace(file, f"{line()}\n\n".encode() + before)


def config() -> str:
    """The file to hand to ssh by -F; "" where ssh finds everything by itself."""
    given = os.environ.get("HOLDFAST_SSH_CONFIG", "")
    if not own_file().exists() or is_included():
        return given
    files = [own_file(), users_file(), *([] if given else [Path("/etc/ssh/ssh_config")])]
    wanted = "".join(f"Include {_quoted(str(file))}\n" for file in files).encode()
    composed = runs.home() / "ssh_config"
    if not composed.exists() or composed.read_bytes() != wanted:
        composed.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fsio.replace(composed, wanted)
    return str(composed)


def load() -> dict[str, Block]:
    """The blocks of our file by name. Raises HoldfastError for a line that is none of ours."""
    try:
        lines = own_file().read_text().splitlines()
    except FileNotFoundError:
        return {}
    blocks: dict[str, Block] = {}
    for number, each in enumerate(lines, 1):
        keyword, words = names.words(each)
        if not keyword:
            continue
        if keyword == "host" and len(words) == 1:
            block = blocks[words[0]] = {}
        elif keyword not in ("host", "match", "include") and words and blocks:
            block[each.split()[0]] = " ".join(words)
        else:
            raise HoldfastError(f"{own_file()} line {number} was not written by holdfast", hint="move it elsewhere")
    return blocks


def put(name: str, block: Mapping[str, str]) -> None:
    """Set the block of `name`. Raises UsageError, HoldfastError, OSError."""
    check_name(name)
    _store({**load(), name: dict(block)})


def remove(name: str) -> bool:
    """Whether there was a block of that name."""
    blocks = load()
    if name not in blocks:
        return False
    del blocks[name]
    _store(blocks)
    return True


def text(blocks: Mapping[str, Mapping[str, str]]) -> str:
    """As in the file."""
    shown = [
        "".join([f"Host {name}\n", *(f"  {keyword} {_quoted(value)}\n" for keyword, value in block.items())])
        for name, block in blocks.items()
    ]
    return "\n".join(shown)


def block(name: str, host: Host) -> Block:
    """The block of `name`: the way there as it was added, and how its connection is kept."""
    way = {keyword: value for keyword, value in load().get(name, {}).items() if keyword in _WAY}
    return {**way, **kept(host)}


def kept(host: Host) -> Block:
    """How plain ssh keeps its connection, from what is set and measured."""
    chosen = choose([("the host's settings", host.settings)], host.measured)
    keepalive = chosen.keepalive
    if host.settings.keepalive in (None, "auto"):
        keepalive, _ = automatic(host.measured, base=PLAIN)
    options = replace(chosen, keepalive=keepalive).options
    path = control_path() if chosen.multiplex else ""
    if not path:
        return {**options, "ControlMaster": "no"}
    persist = f"{chosen.persist_s:.0f}" if chosen.persist_s else "no"
    return {**options, "ControlMaster": "auto", "ControlPath": path, "ControlPersist": persist}


def check_name(name: str) -> None:
    """Raises UsageError for what cannot be the name of one host."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not the name of a host", hint="letters, digits, '.', '_' and '-'")


def control_path() -> str:
    """For plain ssh: in a folder of the user's alone that is always there; "" where such a path would be too long."""
    path = own_file().with_name("hf-%C")
    return str(path) if len(str(path)) - len("%C") + _HASH_BYTES <= _SOCKET_BYTES else ""


def _store(blocks: Mapping[str, Mapping[str, str]]) -> None:
    own_file().parent.mkdir(mode=0o700, exist_ok=True)
    fsio.replace(own_file(), f"{_HEAD}\n{text(blocks)}".encode())


def _quoted(value: str) -> str:
    if any(mark in value for mark in '"\n\r\0'):
        raise UsageError(f"{value!r} cannot stand in a configuration of ssh")
    return f'"{value}"' if not value or any(mark in value for mark in " \t#=") else value
