"""`holdfast ckpt pull`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.checkpoint.lineage import Position
from holdfast.commands.arguments import json_option, print_json, say
from holdfast.commands.ckpt.mirrored import facts, run_of, store_of, url_argument
from holdfast.commands.ckpt.selection import name_of, target_argument
from holdfast.commands.progress import bar
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.checkpoint.folder import Folder
    from holdfast.checkpoint.load import Want
    from holdfast.checkpoint.target import Target


@click.command("pull")
@target_argument()
@url_argument
@json_option
def command(target: Target, url: str | None, as_json: bool) -> None:
    """Bring a checkpoint from a run's mirror, or URL, into its folder: the newest intact one, or the one behind @."""
    from holdfast.mirror import pull
    from holdfast.mirror.view import View

    store = store_of(run_of(target), url)
    folder = _opened(target.root)
    try:
        view, want = View(store, {}), _want(target)
        pull.must_hold(view, want)
        with bar("fetching") as progress:
            chosen = pull.choose(view, folder, want, progress=progress)
    finally:
        folder.leave()
    if chosen.info is None:
        raise pull.nothing_there(store.url)
    for sentence in chosen.fell_back:
        say(sentence)
    info = chosen.info
    if as_json:
        print_json(facts(store, info))
    else:
        click.echo(f"{name_of(info)} (step {info.step}) is here: {target.root}")


def _opened(root: Path) -> Folder:
    """The folder to write to, as its owner or beside the archiver. Raises OSError, NewerFormat."""
    from holdfast.checkpoint.folder import Folder, FolderInUse

    folder = Folder(root)
    try:
        folder.own()
        folder.open()
    except FolderInUse:
        folder.join()
    return folder


def _want(target: Target) -> Want:
    if target.at is None:
        return "newest"
    if isinstance(target.at, int):
        return {"step": target.at}
    if isinstance(target.at, Position):
        return target.at.to_json()
    raise UsageError("what is best on a mirror is not known here", hint="name a step: holdfast ckpt ls")
