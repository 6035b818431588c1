"""`holdfast tensorboard`: TensorBoard on a host, for a run or a folder there, in the browser here."""

from __future__ import annotations

import shlex

import click

from holdfast.commands import page
from holdfast.commands.arguments import RunArgument, keepalive_option
from holdfast.errors import UsageError

# TensorBoard itself listens on ports alone, which everybody of that machine can reach: its own program is given
# another server (`TensorBoard(server_class=…)`), on a unix socket.
_SERVE = f"""
import sys, time
from tensorboard import program
from werkzeug.serving import make_server
used = [time.monotonic()]
class Server(program.TensorBoardServer):
    def __init__(self, app, flags):
        def noted(*request):
            used[0] = time.monotonic()
            return app(*request)
        self.server = make_server("unix://" + sys.argv[1], 0, noted, threaded=True)
    def serve_forever(self):
        self.server.serve_forever()
    def get_url(self):
        return ""
board = program.TensorBoard(server_class=Server)
board.configure(argv=["", "--logdir", "."])
board.launch()
while time.monotonic() - used[0] < {page.UNUSED_S}:
    time.sleep(60)
"""
_FIND = """
program={python}
case "$program" in ""|/*) ;; *) program="$PWD/$program";; esac
cd {directory} 2>/dev/null || fail directory
has_it() {{ test -x "$1" && "$1" -c '{look}' >/dev/null 2>&1 </dev/null && program=$1; }}
if test -n "$program"; then
  has_it "$program" || fail missing
else
  has_it "`command -v python`" || has_it "`command -v python3`" \\
    || has_it "`"$SHELL" -lc 'command -v python || command -v python3' 2>/dev/null </dev/null | tail -n 1`" \\
    || fail missing
fi
"""
_LOOK = 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("tensorboard.program"))'
_NAME = "tensorboard"


@click.command(_NAME)
@click.argument("place", metavar="HOST:RUN|HOST:FOLDER", cls=RunArgument)
@click.option("--python", default="", metavar="PATH", help="A Python there that has tensorboard.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port here; by default any.")
@click.option("--browser/--no-browser", default=True, help="Open it in a browser, or only say where it is.")
@keepalive_option
def command(place: str, python: str, port: int, browser: bool) -> None:
    """Start TensorBoard there and open it here. Ctrl-C ends it; a lost connection does not.

    Of a RUN: in its environment, on the folder where its command runs. A FOLDER has a slash in it: HOST:./logs.
    """
    from holdfast.commands import places

    host, meant = places.placed(place)
    if not host:
        raise UsageError(f"{place} is on this machine", hint="tensorboard --logdir ., after holdfast shell RUN")
    if _is_folder(meant):
        server = _of_folder(host, meant, python)
    else:
        server = page.start_for_run(host, meant, _tensorboard(".", python))
    page.look(host, _NAME, server, port, lambda at: f"http://127.0.0.1:{at}/", browser=browser)


def _is_folder(meant: str) -> bool:
    return "/" in meant or meant in ("", ".", "~")


def _of_folder(host: str, folder: str, python: str) -> page.Server:
    from holdfast.link import target
    from holdfast.link.client import Links

    from_home = "." if folder in ("", "~") else folder.removeprefix("~/")
    with Links() as links:
        return page.start(links.up(host, config=target.users_config()), _tensorboard(from_home, python))


def _tensorboard(directory: str, python: str) -> page.Program:
    find = _FIND.format(look=_LOOK, directory=shlex.quote(directory), python=shlex.quote(python) if python else "")
    shown = directory.replace("{", "{{").replace("}", "}}")
    wrong = {
        "directory": (f"there is no such folder at {{host}}: {shown}", "folders are seen from your home there"),
        "missing": (
            "no Python of {host} has tensorboard",
            "pip install tensorboard there, or name its Python: --python",
        ),
    }
    return page.Program(_NAME, find, f'"$program" -c {shlex.quote(_SERVE)} "$folder/s"', wrong)
