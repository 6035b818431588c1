"""`holdfast relay`: SSH inside a WebSocket that resumes. A file a verb, imported when called."""

from __future__ import annotations

import click

from holdfast.commands.table import Table, Verb, Verbs

VERBS: Table = {
    "Commands": {
        "serve": Verb("relay.serve", "stand where the hosts can be reached"),
        "connect": Verb("relay.connect", "what ssh starts as its ProxyCommand"),
    }
}


@click.command("relay", cls=Verbs, table=VERBS)
def command() -> None:
    """SSH through a firewall that lets only the web pass: inside a WebSocket, and over every cut."""
