"""`holdfast ckpt sync`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from holdfast.commands.arguments import json_option, print_json
from holdfast.commands.ckpt.mirrored import keeper_of, let_go, run_of, store_of, url_argument
from holdfast.commands.ckpt.selection import target_argument, whole
from holdfast.commands.progress import bar
from holdfast.commands.wording import plural
from holdfast.units import show_size

if TYPE_CHECKING:
    from holdfast.checkpoint.target import Target


@click.command("sync")
@target_argument(metavar="RUN")
@url_argument
@json_option
def command(target: Target, url: str | None, as_json: bool) -> None:
    """Make the mirror hold what the folder holds: send what is missing, apply checkpoint.keep, mend the index."""
    from holdfast.checkpoint.pins import pinned
    from holdfast.checkpoint.target import every, find
    from holdfast.mirror import origin
    from holdfast.node.mirroring import policy
    from holdfast.plan import Plan
    from holdfast.runs import plan_of

    run = run_of(whole(target))
    store = store_of(run, url)
    find(target)  # so that a run without a checkpoint is told as any verb tells it
    keeper = keeper_of(run, target.root, store)
    keeper.hold()
    origin.send(run, store)
    there = {info.position for info in keeper.there()}
    missing = [info for info in reversed(every(target)) if info.live and info.position not in there]
    sent_bytes = 0
    for info in missing:
        with bar(f"step {info.step}") as progress:
            sent_bytes += keeper.push(info, progress).sent_bytes
    removed = keeper.retire(policy(Plan.from_json(plan_of(run)).checkpoint.keep, pinned(target.root)))
    mended = keeper.mend_index(doubt=True)
    let_go(run, keeper)
    if as_json:
        steps = {"sent": [info.step for info in missing], "removed": [info.step for info in removed]}
        print_json({"url": store.url, **steps, "sent_bytes": sent_bytes, "mended": mended})
    else:
        click.echo(
            f"{plural(len(missing), 'checkpoint')} sent ({show_size(sent_bytes)}), {len(removed)} removed: {store.url}"
        )
