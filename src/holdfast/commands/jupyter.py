"""`holdfast jupyter`: JupyterLab on a host, in the browser here.

What its kernels have computed is not lost with a connection.
"""

from __future__ import annotations

import secrets
import shlex
from pathlib import PurePosixPath

import click

from holdfast.commands import page
from holdfast.commands.arguments import RunArgument, keepalive_option

_FIND = """
JUPYTER_TOKEN={token}; export JUPYTER_TOKEN
program={program}
case "$program" in ""|/*) ;; *) program="$PWD/$program";; esac
cd {directory} 2>/dev/null || fail directory
test -n "$program" || program=`command -v jupyter`
test -n "$program" || program=`"$SHELL" -lc 'command -v jupyter' 2>/dev/null </dev/null | tail -n 1`
test -x "$program" || fail missing
"$program" lab --version >/dev/null 2>&1 </dev/null || fail lab
"""
_BEGIN = (
    '"$program" lab --no-browser --ServerApp.sock="$folder/s" --ServerApp.sock_mode=0600'
    f" --ServerApp.shutdown_no_activity_timeout={page.UNUSED_S}"
)


@click.command("jupyter")
@click.argument("place", metavar="HOST|HOST:RUN", cls=RunArgument)
@click.option("--dir", "directory", default=".", metavar="DIR", help="Folder there; by default your home, or RUN's.")
@click.option("--python", default="", metavar="PATH", help="A Python there: the jupyter beside it is started.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port here; by default any.")
@click.option("--browser/--no-browser", default=True, help="Open it in a browser, or only say where it is.")
@keepalive_option
def command(place: str, directory: str, python: str, port: int, browser: bool) -> None:
    """Start JupyterLab on HOST and open it here. Ctrl-C ends it; a lost connection does not.

    Of a RUN: in its environment, in the folder where its command runs.
    """
    host, run = _meant(place)
    token = secrets.token_hex(24)
    program = _jupyter(token, directory, python)
    server = page.start_for_run(host, run, program) if run else _of_host(host, program)
    page.look(host, "jupyter", server, port, lambda at: f"http://127.0.0.1:{at}/lab?token={token}", browser=browser)


def _meant(place: str) -> tuple[str, str]:
    """HOST and RUN, "" for none. A name alone is a run that was started there from here, or else a machine."""
    from holdfast.commands import places
    from holdfast.link import names, target

    host, run = places.split(place)
    if host or place in names.known(target.users_config()):
        return host or place, run if host else ""
    host, run = places.placed(place)
    return (host, run) if host else (place, "")


def _of_host(host: str, program: page.Program) -> page.Server:
    from holdfast.link import target
    from holdfast.link.client import Links

    with Links() as links:
        return page.start(links.up(host, config=target.users_config()), program)


def _jupyter(token: str, directory: str, python: str) -> page.Program:
    find = _FIND.format(
        token=token,
        directory=shlex.quote(directory),
        program=shlex.quote(str(PurePosixPath(python).with_name("jupyter"))) if python else "",
    )
    shown = directory.replace("{", "{{").replace("}", "}}")
    wrong = {
        "directory": (f"there is no such folder at {{host}}: {shown}", "name another one with --dir"),
        "missing": ("there is no jupyter at {host}", "pip install jupyterlab there, or name its Python with --python"),
        "lab": ("the jupyter of {host} has no lab", "pip install jupyterlab beside it"),
    }
    return page.Program("jupyter", find, _BEGIN, wrong)
