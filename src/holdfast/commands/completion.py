"""`holdfast completion`: the script that makes a shell complete verbs, options and run names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

# bash takes HOST:RUN apart at the colon: it is put together here, and what stands before the colon is left out of the
# answer. No space follows a HOST.
_BASH_WHOLE_WORDS = r"""
_holdfast_whole_words() {
    local before=${COMP_LINE:0:COMP_POINT}
    local -a COMP_WORDS
    read -ra COMP_WORDS <<< "$before"
    [[ $before == *[[:space:]] ]] && COMP_WORDS+=("")
    local COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    local word=${COMP_WORDS[COMP_CWORD]}
    _holdfast_completion "$@"
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace
    [[ $word == *:* && $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%:*}:"}")
    return 0
}
complete -o nosort -F _holdfast_whole_words holdfast
"""


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
    script = complete(group, {}, "holdfast", "_HOLDFAST_COMPLETE").source()
    click.echo(script + (_BASH_WHOLE_WORDS if shell == "bash" else ""))
