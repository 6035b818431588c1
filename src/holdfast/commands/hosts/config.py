"""`holdfast host config`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.commands.hosts.options import host_argument, offer_include, settings_options, tell_written

if TYPE_CHECKING:
    from holdfast.link.hosts import Settings


@click.command("config")
@host_argument
@settings_options
@click.option("--print", "only_print", is_flag=True, help="Show the block and write nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before the Include line is written.")
def command(host: str, said: Settings, only_print: bool, yes: bool) -> None:
    """Set how the connection to HOST is kept, and write a block from which plain ssh, scp, rsync and editors profit."""
    from holdfast.link import hosts, include, pools

    include.check_name(host)
    pools.check_free(host)
    if only_print:
        known = hosts.load().get(host, hosts.Host())
        block = include.block(host, hosts.with_settings(known, said))
        click.echo(include.text({host: block}), nl=False)
        return
    changed = hosts.update(host, said)
    include.put(host, include.block(host, changed))
    tell_written(host, changed)
    offer_include(yes)
