"""`holdfast ckpt`: the checkpoints of a run, whatever it is doing meanwhile. A file a verb, imported when called."""

from __future__ import annotations

import importlib
import keyword

import click

VERBS = {
    "ls": "list them",
    "show": "what one holds",
    "verify": "read every byte and compare the hashes",
    "diff": "how far two are apart, tensor by tensor",
    "pin": "keep one whatever the rules say",
    "unpin": "leave it to the rules again",
    "rm": "remove single ones",
    "prune": "remove old ones, of many runs at once",
    "export": "write one as .pt, safetensors, Hugging Face or DCP",
    "import": "make one of such a file",
    "push": "send one to the mirror, or to any URL",
    "pull": "bring one from there",
    "sync": "make the mirror hold what the folder holds",
}


class Verbs(click.Group):
    """Imports a verb when it is called, and no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's click command, None for an unknown one."""
        if cmd_name not in VERBS:
            return None
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command = importlib.import_module(f"holdfast.commands.ckpt.{module}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name.ljust(10), summary) for name, summary in VERBS.items()])


@click.command("ckpt", cls=Verbs)
def command() -> None:
    """Checkpoints of a run: look, verify, move, remove."""
