"""The verbs: one file each, imported only when it is called.

`VERBS` is the one table. A module exposes `command`, a click command; what its callback returns is the exit code
(None is 0), and perhaps `together`, which shows what several machines said with `--json`. `--help` and completion
answer from the table alone; whether a verb goes to other machines stands there too (`Away`).
"""

from __future__ import annotations

import importlib

import click

from holdfast import __version__
from holdfast.commands.table import THERE, Away, Table, Verb, Verbs

VERBS: Table = {
    "Start": {
        "run": Verb("run", "start a run and stay with it (-d: leave it)"),
        "resume": Verb(
            "resume",
            "continue from the newest, a step or the best checkpoint",
            Away(lasts="*", unless="detach", leads=True),
        ),
        "schedule": Verb("schedule", "start runs by the clock, never two at a time", THERE),
    },
    "Look": {
        "ps": Verb("ps", "list the runs", THERE),
        "queue": Verb("queue", "the GPUs here, who has them, who waits for them", THERE),
        "status": Verb("status", "where one run stands", Away(lasts="watch")),
        "logs": Verb("logs", "its output (-f: as it comes)", Away(lasts="follow")),
        "attach": Verb("attach", "live view; Ctrl-C leaves the run running", Away(lasts="*", leads=True)),
        "events": Verb("events", "its journal: what happened, when", Away(lasts="follow")),
        "explain": Verb("explain", "why each attempt ended, and what to do", THERE),
    },
    "Steer": {
        "save": Verb("save", "write a checkpoint at the next step", THERE),
        "stop": Verb("stop", "save, then stop", Away(ends=True, halts=True)),
        "kill": Verb("kill", "stop at once, without saving", Away(ends=True, halts=True)),
        "wait": Verb("wait", "until it ends; exits as the run did", Away(lasts="*")),
        "rm": Verb("rm", "delete ended runs, checkpoints included", Away(removes=True, ends=True)),
        "ckpt": Verb("ckpt", "its checkpoints: look, verify, move, remove"),
    },
    "Machine": {
        "shell": Verb("shell", "a terminal in the run's code and environment", Away(rides=True)),
        "drill": Verb("drill", "break a run on purpose and prove that it recovers", THERE),
        "sync": Verb("sync", "a folder to a host, or back; only what changed"),
        "exec": Verb("exec_", "one command on one or many hosts (--on 'gpu-*')"),
        "ssh": Verb("ssh", "a terminal on a host, over the connection that is there"),
        "forward": Verb("forward", "ports of this machine that lead to a host"),
        "jupyter": Verb("jupyter", "JupyterLab on a host, opened here"),
        "tensorboard": Verb("tensorboard", "TensorBoard of a run or a folder on a host, opened here"),
        "host": Verb("hosts", "hosts and their connections; runs after a reboot (setup)"),
        "relay": Verb("relay", "SSH through a firewall that lets only the web pass"),
        "schema": Verb("schema", "the JSON schema of the run file"),
        "completion": Verb("completion", "the completion script of a shell"),
    },
}


# What verbs import when they are called, most of it by way of these
_WHEN_CALLED = (
    "holdfast.checkpoint.survey",
    "holdfast.checkpoint.target",
    "holdfast.creation",
    "holdfast.journal",
    "holdfast.node.client",
    "holdfast.node.gpus",
    "holdfast.node.nvidia",
    "rich.live",
    "rich.progress",
    "rich.table",
)


@click.command(
    "holdfast",
    cls=Verbs,
    table=VERBS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="VERB [ARGS]...",
    epilog="`holdfast VERB --help` explains one verb.",
)
@click.version_option(__version__, message="holdfast %(version)s")
def group() -> None:
    """Declare a training run once, in one file. It finishes, whatever breaks."""


def load_all() -> None:
    """Import every verb, and what verbs import when they are called: for a process that forks them."""
    from holdfast.commands import ckpt

    for verbs in (*VERBS.values(), *ckpt.VERBS.values()):
        for verb in verbs.values():
            importlib.import_module(f"holdfast.commands.{verb.module}")
    for name in _WHEN_CALLED:
        importlib.import_module(name)
