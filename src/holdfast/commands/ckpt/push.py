"""`holdfast ckpt push`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import json_option, print_json
from holdfast.commands.ckpt.mirrored import facts, keeper_of, let_go, run_of, store_of, url_argument
from holdfast.commands.ckpt.selection import name_of, target_argument
from holdfast.commands.progress import bar
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.checkpoint.target import Target


@click.command("push")
@target_argument()
@url_argument
@json_option
def command(target: Target, url: str | None, as_json: bool) -> None:
    """Send a checkpoint of a run to URL, or to its mirror: the newest, or the one behind @."""
    from holdfast.checkpoint.target import find
    from holdfast.mirror import origin

    run = run_of(target)
    store = store_of(run, url)
    info = find(target)
    keeper = keeper_of(run, target.root, store)
    keeper.hold()
    origin.send(run, store)
    with bar("sending") as progress:
        pushed = keeper.push(info, progress)
    keeper.mend_index()
    let_go(run, keeper)
    if as_json:
        print_json({**facts(store, info), "packs": pushed.packs, "sent_bytes": pushed.sent_bytes})
    else:
        said = f"sent {show_size(pushed.sent_bytes)}" if pushed.packs else "was there already"
        click.echo(f"{name_of(info)} (step {info.step}) {said}: {store.url}")
