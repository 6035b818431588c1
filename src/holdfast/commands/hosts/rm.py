"""`holdfast host rm`."""

from __future__ import annotations

import click

from holdfast.commands.arguments import say
from holdfast.commands.hosts.options import host_argument
from holdfast.errors import UsageError


@click.command("rm")
@host_argument
def command(host: str) -> None:
    """Forget HOST: its block in our file, its settings and what was measured; and end its connection."""
    from holdfast.link import client, hosts, include

    known = [include.remove(host), hosts.forget(host)]
    keys = [link["key"] for link in client.held() if link["alias"] == host]
    if not any(known) and not keys:
        raise UsageError(f"nothing is known of {host}", hint="holdfast host ls")
    if keys:
        with client.Links() as links:
            for key in keys:
                links.drop(key)
    say(f"{host} is forgotten; {include.users_file()} stays as it is")
