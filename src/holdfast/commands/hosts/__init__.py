"""`holdfast host`: hosts that runs go to, and what this machine does for runs. A file a verb."""

from __future__ import annotations

import click

from holdfast.commands.table import THERE, Table, Verb, Verbs

VERBS: Table = {
    "Commands": {
        "add": Verb("hosts.add", "name a host, beside your own ssh configuration"),
        "ls": Verb("hosts.ls", "hosts and their connections"),
        "config": Verb("hosts.config", "set how a connection is kept, for plain ssh too"),
        "check": Verb("hosts.check", "is the connection shared, and what does that save"),
        "probe": Verb("hosts.probe", "measure the way there and choose its keepalive"),
        "pool": Verb("hosts.pool", "name several hosts, of which a run takes one"),
        "setup": Verb("hosts.setup", "continue runs of this machine after a reboot", THERE),
        "rm": Verb("hosts.rm", "forget a host"),
    }
}


@click.command("host", cls=Verbs, table=VERBS)
def command() -> None:
    """Hosts that runs go to, and what this machine does for runs when nobody is there."""
