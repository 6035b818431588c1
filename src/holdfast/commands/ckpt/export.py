"""`holdfast ckpt export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import json_option, print_json, say
from holdfast.commands.ckpt.selection import name_of, target_argument
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.checkpoint.target import Target


@click.command("export")
@target_argument()
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--format", "-f", "form", help="pt, safetensors, huggingface or dcp; by default told from DEST's suffix.")
@click.option("--object", "names", multiple=True, help="What was registered under this name; by default model, or all.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="huggingface: the folder with config.json and tokenizer."
)
@click.option("--shard-size", default="5GB", show_default=True, help="huggingface: no file of weights is made larger.")
@click.option("--force", is_flag=True, help="Replace DEST.")
@json_option
def command(
    target: Target,
    dest: Path,
    form: str | None,
    names: tuple[str, ...],
    config: Path | None,
    shard_size: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write one checkpoint as a file or folder that other tools read. DEST is whole when this returns, or not there."""
    from holdfast.checkpoint import reading
    from holdfast.checkpoint.target import find
    from holdfast.formats import base
    from holdfast.units import parse_size

    chosen = form or base.guess(dest)
    base.named(chosen)
    info = find(target)
    choice = base.Choice(names=names, config=config, shard_bytes=parse_size(shard_size))
    with reading.open_checkpoint(target.root, info) as checkpoint:
        said = base.write(chosen, checkpoint, dest, choice, force=force)
    size = sum(path.stat().st_size for path in (dest.rglob("*") if dest.is_dir() else [dest]) if path.is_file())
    if as_json:
        facts = {
            "checkpoint": name_of(info),
            "step": info.step,
            "format": chosen,
            "path": str(dest),
            "size_bytes": size,
        }
        print_json({**facts, "notes": said})
        return
    for sentence in said:
        say(f"note: {sentence}")
    click.echo(f"{dest}  {chosen}, step {info.step} of {target.name}, {show_size(size)}")
