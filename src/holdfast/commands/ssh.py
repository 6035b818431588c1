"""`holdfast ssh`: a terminal on a host, over the connection that is there already."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import keepalive_option
from holdfast.errors import HostUnreachable

if TYPE_CHECKING:
    from holdfast.link.client import Up


@click.command("ssh", context_settings={"ignore_unknown_options": True})
@click.argument("host")
@click.argument("words", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
@keepalive_option
def command(host: str, words: tuple[str, ...]) -> int:
    """A terminal on HOST, or COMMAND at a terminal there. Exits as that did.

    Everything else is as ssh does it for you: what your configuration says about HOST holds.
    """
    from holdfast.link import target
    from holdfast.link.client import Links

    config = target.users_config()
    text = [shlex.join(words) if len(words) > 1 else words[0]] if words else []
    with Links() as links:  # the connection is in use until ssh ends
        up = links.up(host, config=config)
        return ride(up, config, *text)


def ride(up: Up, config: str, *command: str) -> int:
    """A terminal over `up`, or a command at one; its exit status.

    Where one session is all there is, a terminal gets a connection of its own: it would keep everybody else waiting.
    """
    sys.stdout.flush()
    return _ridden([*_ssh("none" if up.single or up.by_one else up.path, config), "--", up.alias, *command])


def _ssh(path: str, config: str) -> list[str]:
    """ssh over the master behind `path`, with a terminal for a command too where there is one here."""
    at_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    file = ["-F", config] if config else []
    return ["ssh", *file, "-S", path, "-o", "ControlMaster=no", *(["-t"] if at_terminal else [])]


def _ridden(argv: list[str]) -> int:
    """The exit status of a child that has the terminal; its keys are none of ours. Raises HostUnreachable."""
    before = signal.signal(signal.SIGINT, lambda _number, _frame: None)  # not ignored: the child would ignore it too
    try:
        status = subprocess.run(argv, check=False).returncode
    except FileNotFoundError:
        raise HostUnreachable("there is no program ssh", hint="install the OpenSSH client") from None
    finally:
        signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status
