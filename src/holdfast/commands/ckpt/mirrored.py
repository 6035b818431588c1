"""What the verbs that speak to a mirror share: which run, which URL, and the folder of the one in the other's words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.commands.arguments import Callback
from holdfast.commands.ckpt.selection import name_of
from holdfast.commands.liveness import live
from holdfast.commands.secrets import secrets_of
from holdfast.errors import UsageError
from holdfast.runs import RunDir, plan_of

if TYPE_CHECKING:
    from holdfast.checkpoint.survey import CheckpointInfo
    from holdfast.checkpoint.target import Target
    from holdfast.mirror.keeper import Keeper
    from holdfast.stores import Store


def url_argument(callback: Callback) -> Callback:
    """A URL that may be left out: the run file's mirror then."""
    decorate: Callable[[Callback], Callback] = click.argument("url", required=False, metavar="[URL]")
    return decorate(callback)


def run_of(target: Target) -> RunDir:
    """The run meant. Raises UsageError for a folder that is none's."""
    if target.run is None:
        raise UsageError(f"{target.root} belongs to no run here", hint="holdfast ps --all lists every run")
    return target.run


def store_of(run: RunDir, url: str | None) -> Store:
    """The mirror at `url`, or the run's own. Raises UsageError, StoreRefused, SecretUnavailable."""
    from holdfast import stores

    plan = plan_of(run)
    mirror = plan["checkpoint"].get("mirror")
    if url is None and not mirror:
        raise UsageError(f"{run.id} has no mirror", hint=f"name one: s3://BUCKET/{run.id}")
    environ = {**os.environ, **plan.get("env", {}), **secrets_of(plan, os.environ)}
    return stores.connect(url or mirror["url"], environ)


def keeper_of(run: RunDir, root: Path, store: Store) -> Keeper:
    """Who may write to `store` for this run, with the bandwidth of the run file."""
    from holdfast.mirror.keeper import Keeper

    mirror = plan_of(run)["checkpoint"].get("mirror") or {}
    return Keeper(root, store, bytes_per_s=mirror.get("bytes_per_s"))


def facts(store: Store, info: CheckpointInfo) -> dict[str, Any]:
    """Which checkpoint went where, for `--json`."""
    numbers = {"term": info.term, "sequence": info.sequence, "step": info.step}
    return {"url": store.url, "checkpoint": name_of(info), **numbers}


def let_go(run: RunDir, keeper: Keeper) -> None:
    """A run that nobody carries need not look alive: another machine may continue it at once. Raises StoreRefused."""
    if not live(run):
        keeper.rest()
