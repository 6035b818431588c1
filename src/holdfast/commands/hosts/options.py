"""What the verbs of `holdfast host` share: a HOST, options of its connection, and the Include line."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import Callback, say
from holdfast.commands.reaching import complete_hosts

if TYPE_CHECKING:
    from holdfast.link.hosts import Host

_OPTIONS = {
    "keepalive": ("30x5", "A question every 30 s, dead after 5 unanswered; or auto, off."),
    "persist": ("10m", "How long a connection that nobody uses stays; or no."),
    "max_age": ("7h30m", "Renewed before it is so old; or any."),
    "compression": ("on", "on, off, or auto: where it is measured to pay."),
    "multiplex": ("on", "off: every call authenticates on its own."),
    "tcp_keepalive": ("on", "Keepalive of TCP: on or off."),
    "identities_only": ("on", "Only the keys that are configured, not all of the agent's: on or off."),
}


def host_argument(callback: Callback) -> Callback:
    """A HOST: any name that ssh understands."""
    return click.argument("host", shell_complete=complete_hosts)(callback)


def settings_options(callback: Callback) -> Any:
    """Options that arrive as one `said`, of type link.hosts.Settings. Raises UsageError."""

    @functools.wraps(callback)
    def collected(*arguments: Any, **options: Any) -> Any:
        from holdfast.link import hosts

        texts = {name: options.pop(name) for name in _OPTIONS}
        said = hosts.read({name: text for name, text in texts.items() if text is not None})
        return callback(*arguments, said=said, **options)

    made: Any = collected
    for name, (example, explained) in reversed(_OPTIONS.items()):
        made = click.option(f"--{name.replace('_', '-')}", name, metavar=example, help=explained)(made)
    return made


def tell_written(name: str, host: Host) -> None:
    """Where the block of `name` lies, and what plain ssh does not get by it."""
    from holdfast.link import include

    say(f"{name} is in {include.own_file()}")
    if host.settings.multiplex is not False and not include.control_path():
        say(
            f"plain ssh shares no connection to {name}: below {include.own_file().parent} the path of its control "
            "socket would be too long",
            hint="holdfast shares its own all the same",
        )


def offer_include(yes: bool) -> None:
    """The line that makes plain ssh read our file: written when a person agrees, else told."""
    from holdfast.link import include

    if include.is_included():
        return
    if not yes and not sys.stdin.isatty():
        say(
            f"plain ssh does not read {include.own_file()} yet; holdfast does",
            hint=f"--yes puts this line at the top of {include.users_file()}: {include.line()}",
        )
        return
    if yes or click.confirm(f"put `{include.line()}` at the top of {include.users_file()}, for plain ssh?", err=True):
        include.include()
        say(f"{include.users_file()} begins with: {include.line()}")
