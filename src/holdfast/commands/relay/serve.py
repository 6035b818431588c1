"""`holdfast relay serve`: the end that stands where the hosts can be reached."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from pathlib import Path

import click

from holdfast.commands.arguments import duration_option
from holdfast.commands.relay.needed import websockets_needed
from holdfast.errors import UsageError
from holdfast.relay.words import cause

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("serve")
@click.option(
    "--listen",
    default="127.0.0.1:8022",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Where clients, or the proxy, come.",
)
@click.option("--cert", type=_FILE, help="The certificate and those between it and its authority, PEM.")
@click.option("--key", type=_FILE, help="Its private key, PEM.")
@click.option("--behind-proxy", is_flag=True, help="TLS ends in a reverse proxy; addresses are in X-Forwarded-For.")
@click.option("--target", "targets", multiple=True, metavar="HOST:PORT", help="Where the one token may go; repeatable.")
@click.option("--token-file", type=_FILE, help="A file with the one token.  [default: HOLDFAST_RELAY_TOKEN]")
@click.option("--tokens", type=_FILE, help="Several: a line is name, SHA-256 of the token, targets, perhaps a rate.")
@duration_option("--keep", default="10m", show_default=True, help="How long a session waits for its client.")
@duration_option("--idle", default="1d", show_default=True, help="Without a byte of data; then it is ended.")
@duration_option("--drain", default="30s", show_default=True, help="How long sessions may go on after SIGTERM.")
@click.option("--sessions", type=click.IntRange(1, 4096), default=64, show_default=True, help="At a time.")
def command(
    listen: str,
    cert: Path | None,
    key: Path | None,
    behind_proxy: bool,
    targets: tuple[str, ...],
    token_file: Path | None,
    tokens: Path | None,
    keep: float,
    idle: float,
    drain: float,
    sessions: int,
) -> None:
    """Let those who have a token through to the targets, and to nothing else."""
    with websockets_needed():
        from holdfast.relay import server
    from holdfast.relay.tokens import Token, checked_targets, digest_of, read_token, read_tokens

    if tokens is not None and (targets or token_file is not None):
        raise UsageError("--tokens names tokens and targets already", hint="leave out --target and --token-file")
    if tokens is None and not targets:
        raise UsageError("there is no target", hint="--target gpu-a:22, or --tokens FILE")
    known = (
        read_tokens(tokens)
        if tokens is not None
        else [Token("the token", digest_of(read_token(token_file)), checked_targets(targets))]
    )
    host, port = _place(listen)
    settings = server.Settings(
        tokens=known,
        keep_s=keep,
        idle_s=idle,
        drain_s=drain,
        most_sessions=sessions,
        behind_proxy=behind_proxy,
    )
    asyncio.run(server.run(settings, host=host, port=port, tls=_tls(cert, key, host, behind_proxy)))


def _place(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{listen!r} is not an address and a port", hint="write it like 0.0.0.0:443 or [::]:443")
    return host.strip("[]"), int(port)


def _tls(cert: Path | None, key: Path | None, host: str, behind_proxy: bool) -> ssl.SSLContext | None:
    if (cert is None) is not (key is None):
        raise UsageError("--cert and --key belong together")
    if cert is None or key is None:
        if not behind_proxy and not _is_loopback(host):
            raise UsageError(
                f"tokens would cross the network to {host} unencrypted",
                hint="--cert and --key, or --behind-proxy where TLS ends before this",
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"{cert} and {key} are no certificate and its key: {cause(error)}") from error
    return context


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
