"""`holdfast completion`: the script that makes a shell complete verbs, options and run names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash  eval "$(holdfast completion bash)" in ~/.bashrc
    zsh   eval "$(holdfast completion zsh)" in ~/.zshrc
    fish  holdfast completion fish > ~/.config/fish/completions/holdfast.fish
    """
    from holdfast.commands import group

    complete = get_completion_class(shell)
    assert complete is not None
    click.echo(complete(group, {}, "holdfast", "_HOLDFAST_COMPLETE").source())
