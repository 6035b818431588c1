"""The `holdfast` program: one table of verbs, one place where errors become sentences and exit codes.

`holdfast node …` is how our own processes start; it is answered before click is imported, so they stay small.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if not __package__:  # started as a folder, `python -I …/holdfast`: then that is where Python looks for modules first
    sys.path[0] = os.path.dirname(sys.path[0])  # noqa: PTH120 - pathlib takes long to import

from holdfast.errors import INTERRUPTED, HoldfastError, plain

if TYPE_CHECKING:
    from holdfast.runs import RunDir

# Errors of the machine, not ours: errno → what a person can do
_OUTSIDE = {
    errno.ENOSPC: "free some space, or set HOLDFAST_HOME to another disk",
    errno.EDQUOT: "your quota is used up: free some space, or set HOLDFAST_HOME to another disk",
    errno.EROFS: "the file system is read-only: set HOLDFAST_HOME to one that is not",
    errno.EACCES: "you may not write there: check the owner, or set HOLDFAST_HOME elsewhere",
    errno.EPERM: "you may not do that there: check the owner, or set HOLDFAST_HOME elsewhere",
    errno.EIO: "the disk reports errors: see dmesg, and set HOLDFAST_HOME to another disk",
}


def main() -> None:
    """Entry point of the console script and of `python -m holdfast`."""
    status = run(sys.argv[1:])
    gc.freeze()  # else Python looks through all that is left, for cycles, before it ends: longer than many a verb takes
    sys.exit(status)


def run(argv: Sequence[str], *, clock: Callable[[], float] | None = None) -> int:
    """Run one command line and return its exit code. `clock` gives unix seconds; by default it is time.time."""
    argv = list(argv)
    if argv[:1] == ["node"]:
        return _node(argv[1:])
    if argv == ["link-agent"]:
        return _link_agent()
    if argv[:1] == ["link-askpass"]:
        return _link_askpass(argv[1:])
    try:
        return _verb(argv, clock)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return 0
    except HoldfastError as error:
        from holdfast.commands import afar

        return _say(str(error), afar.typed(error.hint), error.exit_code)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OUTSIDE:
            return _say(
                f"{error.filename or 'a file'}: {error.strerror}", _OUTSIDE[error.errno], HoldfastError.exit_code
            )
        from holdfast.commands.crash import report

        return _say(*report(error, argv), HoldfastError.exit_code)


def _node(argv: Sequence[str]) -> int:
    """A process of a run, or the service of a user; what it does not expect goes to its log as a traceback."""
    try:
        if argv[:1] == ["service"]:
            return _service(argv[1:])
        if argv[:1] == ["standby"]:
            return _standby(argv[1:])
        from holdfast.node import main as node_main

        return node_main(argv)
    except HoldfastError as error:
        return _say(str(error), error.hint, error.exit_code)


def _service(argv: Sequence[str]) -> int:
    """The process of a node that answers and runs verbs for its user's laptops."""
    from holdfast.service import resident

    def load() -> tuple[Callable[[Sequence[str]], int], Callable[[RunDir], dict[str, Any]]]:
        from holdfast.commands import liveness, load_all

        load_all()
        return run, liveness.status_of

    return resident.main(argv, load)


def _standby(argv: Sequence[str]) -> int:
    """What stands by for a run of another machine: it resumes as the verb does."""
    from holdfast.commands import standby

    return standby.main(argv)


def _link_agent() -> int:
    """The process that holds a person's connections."""
    from holdfast.link import agent

    try:
        return agent.main()
    except HoldfastError as error:
        return _say(str(error), error.hint, error.exit_code)


def _link_askpass(argv: Sequence[str]) -> int:
    """The program that ssh runs to ask a person."""
    from holdfast.link import asking

    return asking.main(" ".join(argv))


def _verb(argv: Sequence[str], clock: Callable[[], float] | None) -> int:
    import click

    from holdfast.commands import afar, group

    afar.begin()
    try:
        returned = group.main(args=list(argv), prog_name="holdfast", standalone_mode=False, obj=clock)
    except click.Abort as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # and nobody has said what goes on
            sys.stderr.write("interrupted: this command has ended, runs go on\n")
        return INTERRUPTED
    except SystemExit as error:  # click's way to say that the reader left; nothing else exits from inside a verb
        raise BrokenPipeError from error
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "holdfast"
        return _say(error.format_message().removesuffix("."), f"{path} --help", error.exit_code)
    except click.ClickException as error:
        return _say(error.format_message().removesuffix("."), "", error.exit_code)
    sys.stdout.flush()
    return returned if isinstance(returned, int) else 0


def _say(message: str, hint: str, exit_code: int) -> int:
    sys.stderr.write(plain(f"error: {message}\n" + (f"hint: {hint}\n" if hint else "")))
    sys.stderr.flush()
    return exit_code


def _silence_stdout() -> None:
    """The reader left; keep the interpreter from complaining about it while it flushes on its way out."""
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - the descriptor is what is wanted
        os.dup2(nothing.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main()
