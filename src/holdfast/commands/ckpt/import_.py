"""`holdfast ckpt import`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from holdfast.commands.arguments import json_option, print_json, say
from holdfast.commands.ckpt.selection import name_of
from holdfast.errors import UsageError
from holdfast.units import show_size


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "-f", "form", help="pt, safetensors, huggingface or dcp; by default told from SOURCE.")
@click.option("--take", help="The part of SOURCE that is the state_dict, such as model_state_dict.")
@click.option("--as", "name", default="model", show_default=True, help="The name under which Run knows the module.")
@json_option
def command(source: Path, folder: Path, form: str | None, take: str | None, name: str, as_json: bool) -> None:
    """Make FOLDER a checkpoint of the weights in SOURCE, for `holdfast run --from FOLDER`. Never runs what it reads."""
    from holdfast.formats import base

    if not (source.is_file() or source.is_dir()):
        raise UsageError(f"{source} is no file" if source.exists() else f"there is no {source}")
    chosen = form or base.guess(source)
    with base.needs_torch("an import"):
        from holdfast.checkpoint import making

        weights = base.state_dict_of(base.read(chosen, source), take)
        with base.writing(folder):
            info = making.make(folder, {name: weights}, reason=f"imported from {source.name}")
    if as_json:
        facts = {"checkpoint": name_of(info), "name": name, "format": chosen, "path": str(folder)}
        print_json({**facts, "entries": len(weights), "size_bytes": info.size_bytes})
        return
    click.echo(f"{folder}  {name_of(info)}, {len(weights)} entries as {name!r}, {show_size(info.size_bytes)}")
    say(
        "a run that begins with it starts at step 0: optimizer, schedule, data position and random states are fresh",
        hint=f"holdfast run --from {shlex.quote(str(folder))}",
    )
