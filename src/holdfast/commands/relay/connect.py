"""`holdfast relay connect`: what ssh starts as its ProxyCommand."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from holdfast.commands.relay.needed import websockets_needed

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("connect")
@click.option("--token-file", type=_FILE, help="A file with the token alone.  [default: HOLDFAST_RELAY_TOKEN]")
@click.option("--ca", type=_FILE, help="Trust the authorities in this file, in place of the system's.")
@click.argument("url")
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
def command(token_file: Path | None, ca: Path | None, url: str, host: str, port: int) -> None:
    """Carry stdin and stdout to HOST, PORT through the relay at URL (wss://…), over every cut in between.

    In ~/.ssh/config:  ProxyCommand holdfast relay connect wss://relay.example.org/ssh %h %p
    """
    with websockets_needed():
        from holdfast.relay import client
    from holdfast.relay.tokens import read_token, target_of

    settings = client.Settings(
        url=client.checked_url(url),
        target=target_of(host, port),
        token=read_token(token_file),
        ca=str(ca) if ca else None,
    )
    asyncio.run(_until_told(client.Client(settings).run()))


async def _until_told(work: Coroutine[Any, Any, None]) -> None:
    """Signals end it as its own end would: ssh sends SIGHUP when it has no more use for us."""
    running = asyncio.ensure_future(work)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        return
