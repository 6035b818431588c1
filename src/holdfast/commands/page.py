"""A program with a web page on a host, looked at here: how it is started there, shown, and ended.

It listens on a unix socket in a folder of its own there, where nobody else of that machine can reach it, and goes on
while the link is away. The folder of one that was killed goes when the next one starts; who lives has it in its command
line, and one that is just being started is young.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import click

from holdfast.commands.arguments import going_on
from holdfast.commands.forward import Wanted, stay
from holdfast.errors import HoldfastError, HostUnreachable, UsageError

if TYPE_CHECKING:
    from holdfast.link.client import Up

UNUSED_S = 86_400  # so long after it was last used it ends by itself, where nobody could end it
SHELL = "exec /bin/sh -s"
_START_S = 60.0
_END_S = 10.0
_YOUNG_MIN = 10
_SAYS = "holdfast-page: "  # before what we read: start-up files of a shell may print anything

# /bin/sh reads this from its standard input: a secret on a command line could be seen by everybody on that machine.
_START = """
say() {{ echo "{says}$*"; }}
fail() {{ say "$1"; exit 0; }}
{find}
ours=holdfast-{name}.`uname -n` # containers may share /tmp
for left in `find /tmp -maxdepth 1 -user "$(id -u)" -name "$ours.??????" -mmin +{young} 2>/dev/null`; do
  grep -qsa "$left/[s]" /proc/[0-9]*/cmdline || rm -rf "$left"
done
folder=`mktemp -d "/tmp/$ours.XXXXXX"` || fail folder
{begin} >"$folder/log" 2>&1 </dev/null &
trap '' PIPE
left={tries}
until test -S "$folder/s"; do
  left=$((left - 1))
  kill -0 $! 2>/dev/null || left=0
  if test $left -le 0; then
    kill $! 2>/dev/null; say "ended `tail -n 1 "$folder/log"`"; rm -rf "$folder"; exit 0
  fi
  sleep 0.1
done
say "running $! $folder" 2>/dev/null || {{ kill $!; rm -rf "$folder"; }}
"""
_STOP = """
case "`ps -o args= -p {pid}`" in *{name}*) kill {pid};; esac
left={tries}
while kill -0 {pid} 2>/dev/null && test $left -gt 0; do left=$((left - 1)); sleep 0.1; done
rm -rf {folder}
"""


@dataclass(frozen=True, slots=True)
class Program:
    """What is started. `name`: as people call it; its command line there has it too.

    find: lines of sh that go where it is to run and look for it, or `fail WORD`; begin: the command that listens on
    `$folder/s`; wrong: sentence and hint for each WORD, in which {host} is the host.
    """

    name: str
    find: str
    begin: str
    wrong: Mapping[str, tuple[str, str]]


class Server(NamedTuple):
    """One that runs there; it listens on `s` in its folder."""

    pid: int
    folder: str


def start(up: Up, program: Program, shell: str = SHELL) -> Server:
    """Start it there, in `shell`. Raises HostUnreachable, UsageError for what is missing there."""
    from holdfast.link import remote

    tries = round(_START_S * 10)
    script = _START.format(
        says=_SAYS, find=program.find, name=program.name, young=_YOUNG_MIN, begin=program.begin, tries=tries
    )
    outcome = remote.ask(up, shell, script.encode(), within_s=2 * _START_S)
    lines = outcome.out.decode(errors="replace").splitlines()
    said = [line.removeprefix(_SAYS) for line in lines if line.startswith(_SAYS)]
    if not said:
        if outcome.status == UsageError.exit_code and not outcome.error:
            raise UsageError(f"{up.alias}: {outcome.err.decode(errors='replace').strip().removeprefix('error: ')}")
        why = outcome.error or outcome.err.decode(errors="replace").strip() or "it said nothing"
        raise HostUnreachable(f"no {program.name} could be started at {up.alias}: {why}")
    runs = re.fullmatch(r"running (\d{1,9}) (/\S+)", said[-1])
    if runs:
        return Server(int(runs[1]), runs[2])
    word, _, rest = said[-1].partition(" ")
    if word == "ended":
        raise HoldfastError(f"the {program.name} of {up.alias} has ended: {rest or 'it said nothing'}")
    wrong = {**program.wrong, "folder": ("no folder can be made in /tmp of {host}", "is its disk full?")}
    if word not in wrong:
        raise HostUnreachable(f"no {program.name} could be started at {up.alias}: it says {said[-1]!r}")
    sentence, hint = wrong[word]
    raise UsageError(sentence.format(host=up.alias), hint=hint)


def start_for_run(host: str, run: str, program: Program) -> Server:
    """Start it in the environment of a run there, where its command runs. Raises HostUnreachable, UsageError."""
    from holdfast.commands.places import WITHIN_S
    from holdfast.commands.reach import linked

    with linked(host, WITHIN_S) as there:
        return start(there.up, program, shlex.join(there.starting("shell", run, "--", "/bin/sh", "-s")))


def look(host: str, name: str, server: Server, port: int, url: Callable[[int], str], *, browser: bool) -> None:
    """Let `port` of this machine, 0 for any, lead there, and show it, until Ctrl-C; then end it.

    Raises HostUnreachable with where it still runs.
    """
    from holdfast.link.mux import End

    try:
        with going_on(f"the {name} of {host} is being ended"):
            _end_like_ctrl_c()
            wanted = [Wanted(port, End(path=f"{server.folder}/s"))]
            stay(host, wanted, ready=lambda had: _show(url(had[0].listen), browser))
    finally:
        _end(host, name, server)


def _end_like_ctrl_c() -> None:
    """A terminal that is closed, or `kill`, ends us as Ctrl-C does: nobody else knows the way to what runs there.

    Once, and what comes after it is passed over: a terminal tells its shell, which tells us a second time.
    """
    signals = [each for each in (signal.SIGHUP, signal.SIGTERM) if signal.getsignal(each) is signal.SIG_DFL]

    def told(_number: int, _frame: object) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each in signals:
        signal.signal(each, told)


def _show(url: str, browser: bool) -> None:
    click.echo(url)
    if browser and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(url)


def _end(host: str, name: str, server: Server) -> None:
    from holdfast.link import remote, target
    from holdfast.link.client import Links

    folder, tries = shlex.quote(server.folder), round(_END_S * 10)
    script = _STOP.format(pid=server.pid, name=name, folder=folder, tries=tries)
    try:
        with Links() as links:
            up = links.up(host, config=target.users_config())
            outcome = remote.ask(up, SHELL, script.encode(), within_s=2 * _END_S)
    except HostUnreachable as error:
        raise HostUnreachable(
            f"{error}; {name} goes on there as process {server.pid}, until a day after it was last used",
            hint=f"holdfast exec --on {host} -- kill {server.pid}",
        ) from error
    if outcome.error:
        raise HostUnreachable(f"{host}: {outcome.error}", hint=f"holdfast exec --on {host} -- kill {server.pid}")
