"""`holdfast host add`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.commands.hosts.options import offer_include, settings_options, tell_written
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.link.hosts import Settings


@click.command("add")
@click.argument("name")
@click.option("--hostname", help="Its address.  [default: NAME]")
@click.option("--user", help="Who logs in there.")
@click.option("--port", type=click.IntRange(1, 65535), help="Of its SSH server.")
@click.option("--jump", metavar="HOST", help="Through that host (ProxyJump).")
@click.option("--key", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The only key to show.")
@settings_options
@click.option("--yes", "-y", is_flag=True, help="Let plain ssh know it too, without asking.")
def command(
    name: str,
    hostname: str | None,
    user: str | None,
    port: int | None,
    jump: str | None,
    key: Path | None,
    said: Settings,
    yes: bool,
) -> None:
    """Name a host in ~/.ssh/holdfast.conf; your own configuration stays as it is."""
    from holdfast.link import hosts, include, names, pools

    include.check_name(name)
    pools.check_free(name)
    if name not in include.load() and name in names.known(str(include.users_file())):
        raise UsageError(
            f"{name} is in {include.users_file()} already, and can be used as it is",
            hint=f"holdfast host config {name} sets how its connection is kept",
        )
    way = {
        "HostName": hostname or name,
        "User": user,
        "Port": str(port) if port else None,
        "ProxyJump": jump,
        "IdentityFile": str(key.absolute()) if key else None,
        "IdentitiesOnly": "yes" if key else None,
    }
    host = hosts.update(name, said)
    kept = include.kept(host)
    include.put(name, {**{keyword: value for keyword, value in way.items() if value is not None}, **kept})
    tell_written(name, host)
    offer_include(yes)
