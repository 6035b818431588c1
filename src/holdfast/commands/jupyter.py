"""`holdfast jupyter`: JupyterLab on a host, in the browser here.

It listens on a unix socket in a folder of its own there, where nobody else of that machine can reach it, and goes on
while the link is away: what its kernels have computed is not lost with a connection.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
import webbrowser
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import click

from holdfast.commands.arguments import going_on
from holdfast.commands.forward import Wanted, stay
from holdfast.errors import HoldfastError, HostUnreachable, UsageError

if TYPE_CHECKING:
    from holdfast.link.client import Up

_START_S = 60.0
_END_S = 10.0
_UNUSED_S = 86_400  # so long after the last kernel and request it ends by itself, where nobody could end it
_SAYS = "holdfast-jupyter: "  # before what we read: start-up files of a shell may print anything

# /bin/sh reads this from its standard input: a token on a command line could be seen by everybody on that machine.
_START = """
JUPYTER_TOKEN={token}; export JUPYTER_TOKEN
say() {{ echo "{says}$*"; }}
fail() {{ say "$1"; exit 0; }}
program={program}
case "$program" in ""|/*) ;; *) program="$PWD/$program";; esac
cd {directory} 2>/dev/null || fail directory
test -n "$program" || program=`command -v jupyter`
test -n "$program" || program=`"$SHELL" -lc 'command -v jupyter' 2>/dev/null </dev/null | tail -n 1`
test -x "$program" || fail missing
"$program" lab --version >/dev/null 2>&1 </dev/null || fail lab
folder=`mktemp -d /tmp/holdfast-jupyter.XXXXXX` || fail folder
"$program" lab --no-browser --ServerApp.sock="$folder/s" --ServerApp.sock_mode=0600 \\
  --ServerApp.shutdown_no_activity_timeout={unused_s} >"$folder/log" 2>&1 </dev/null &
left={tries}
until test -S "$folder/s"; do
  left=$((left - 1))
  kill -0 $! 2>/dev/null || left=0
  if test $left -le 0; then
    kill $! 2>/dev/null; say "ended `tail -n 1 "$folder/log"`"; rm -rf "$folder"; exit 0
  fi
  sleep 0.1
done
say "running $! $folder"
"""
_STOP = """
case "`ps -o args= -p {pid}`" in *jupyter*) kill {pid};; esac
left={tries}
while kill -0 {pid} 2>/dev/null && test $left -gt 0; do left=$((left - 1)); sleep 0.1; done
rm -rf {folder}
"""
_WRONG = {
    "directory": ("there is no such folder at {host}: {directory}", "name another one with --dir"),
    "missing": ("there is no jupyter at {host}", "pip install jupyterlab there, or name its Python with --python"),
    "lab": ("the jupyter of {host} has no lab", "pip install jupyterlab beside it"),
    "folder": ("no folder can be made in /tmp of {host}", "is its disk full?"),
}


class _Server(NamedTuple):
    """One that runs there; it listens on `s` in its folder."""

    pid: int
    folder: str


@click.command("jupyter")
@click.argument("host")
@click.option("--dir", "directory", default=".", metavar="DIR", help="Folder there; by default your home.")
@click.option("--python", default="", metavar="PATH", help="A Python there: the jupyter beside it is started.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port here; by default any.")
@click.option("--browser/--no-browser", default=True, help="Open it in a browser, or only say where it is.")
def command(host: str, directory: str, python: str, port: int, browser: bool) -> None:
    """Start JupyterLab on HOST and open it here. Ctrl-C ends it; a lost connection does not."""
    from holdfast.link import target
    from holdfast.link.client import Links
    from holdfast.link.mux import End

    token, config = secrets.token_hex(24), target.users_config()
    with Links() as links:
        server = _start(links.up(host, config=config), token, directory, python)
    try:
        with going_on(f"the jupyter of {host} is being ended"):
            wanted = [Wanted(port, End(path=f"{server.folder}/s"))]
            stay(host, wanted, ready=lambda had: _show(f"http://127.0.0.1:{had[0].listen}/lab?token={token}", browser))
    finally:
        _end(host, config, server)


def _start(up: Up, token: str, directory: str, python: str) -> _Server:
    """Raises HostUnreachable, UsageError for what is missing there."""
    from holdfast.link import remote

    script = _START.format(
        token=token,
        says=_SAYS,
        directory=shlex.quote(directory),
        program=shlex.quote(str(PurePosixPath(python).with_name("jupyter"))) if python else "",
        unused_s=_UNUSED_S,
        tries=round(_START_S * 10),
    )
    outcome = remote.ask(up, "exec /bin/sh -s", script.encode(), within_s=2 * _START_S)
    said = [line for line in outcome.out.decode(errors="replace").splitlines() if line.startswith(_SAYS)]
    if not said:
        why = outcome.error or outcome.err.decode(errors="replace").strip() or "it said nothing"
        raise HostUnreachable(f"no jupyter could be started at {up.alias}: {why}")
    word, _, rest = said[-1].removeprefix(_SAYS).partition(" ")
    if word == "running":
        pid, _, folder = rest.partition(" ")
        return _Server(int(pid), folder)
    if word == "ended":
        raise HoldfastError(f"the jupyter of {up.alias} has ended: {rest or 'it said nothing'}")
    sentence, hint = _WRONG[word]
    raise UsageError(sentence.format(host=up.alias, directory=directory), hint=hint)


def _show(url: str, browser: bool) -> None:
    click.echo(url)
    if browser and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(url)


def _end(host: str, config: str, server: _Server) -> None:
    """Raises HostUnreachable with where it still runs."""
    from holdfast.link import remote
    from holdfast.link.client import Links

    script = _STOP.format(pid=server.pid, folder=shlex.quote(server.folder), tries=round(_END_S * 10))
    try:
        with Links() as links:
            outcome = remote.ask(links.up(host, config=config), "exec /bin/sh -s", script.encode(), within_s=2 * _END_S)
    except HostUnreachable as error:
        raise HostUnreachable(
            f"{error}; jupyter goes on there as process {server.pid}, until a day after it was last used",
            hint=f"holdfast exec --on {host} -- kill {server.pid}",
        ) from error
    if outcome.error:
        raise HostUnreachable(f"{host}: {outcome.error}", hint=f"holdfast exec --on {host} -- kill {server.pid}")
