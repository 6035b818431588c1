"""`holdfast resume URL`: continue, on a machine that has nothing, what a mirror holds.

The run is made anew from what was mirrored: its run file, its code, its checkpoint. Secrets are nowhere on a mirror, so
the caller gives them again. The mirror is taken over by a lease before anything starts: where that fails nothing is
left behind here.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.commands.progress import bar
from holdfast.commands.resumable import At, Elsewhere
from holdfast.commands.secrets import secret_values
from holdfast.errors import UsageError
from holdfast.process import callers
from holdfast.runs import RunDir

if TYPE_CHECKING:
    from holdfast.checkpoint.folder import Folder
    from holdfast.checkpoint.load import Want
    from holdfast.mirror.view import View
    from holdfast.plan import Plan
    from holdfast.stores import Store


def resume(
    source: Elsewhere, *, secrets: Sequence[str], argv: Sequence[str], environ: Mapping[str, str], by_hand: bool = True
) -> tuple[RunDir, dict[str, str]]:
    """Make the run here, its checkpoint in place and the mirror taken over; its directory and its secrets.

    `environ`: the caller's, of which the run gets what `run` would give it. `by_hand`: a person wants it, whoever told
    the run to stop before.

    Raises HeldElsewhere or Superseded (11), NoValidCheckpoint (12), StoreRefused (14), UsageError.
    """
    from holdfast import creation, spec, stores
    from holdfast.mirror import fence
    from holdfast.mirror.origin import Origin
    from holdfast.node import nvidia

    known = {**environ, **{name: value for name, equals, value in (each.partition("=") for each in secrets) if equals}}
    origin = Origin(stores.connect(source.url, known, stores.IMPATIENT))
    store = stores.connect(source.url, known)
    with tempfile.TemporaryDirectory(prefix="holdfast-") as code:
        overrides = [f"checkpoint.mirror.url={source.url}", "workdir=."]
        if origin.has_code:
            origin.unpack(Path(code))
            overrides[-1] = f"workdir={code}"
        declared = spec.load(
            [spec.Source(f"{source.url}/run/holdfast.yaml", origin.spec)],
            overrides=overrides, secrets=secrets, environ=environ, name=origin.plan.get("name"), argv=argv,
        )  # fmt: skip
        order = creation.Order(
            spec=declared, base=Path.cwd(), copy=origin.has_code, id=None, environ=callers(environ), takes_over=True
        )
        name = str(origin.plan.get("run") or origin.plan.get("name") or "run")
        planned = creation.preview(order, name)
        if planned.accelerators:
            nvidia.must_have(planned.accelerators, planned.env.get("PATH"))
        values = secret_values(declared, planned, secrets, environ)
        run, _ = creation.create(order, name, lambda run, plan: _fill(run, plan, store, source.at, origin.plan))
        if by_hand:
            fence.revoke_stop(store)
    return run, values


def _fill(run: RunDir, plan: Plan, store: Store, at: At, before: Mapping[str, Any]) -> None:
    """The first line of the journal, and the checkpoint, with a lease that says where this line begins."""
    from holdfast.checkpoint.folder import Folder
    from holdfast.creation import record_created
    from holdfast.mirror.view import View

    record_created(run, plan)
    with Folder(Path(plan.checkpoint.dir)).owned() as folder:
        _take_over(folder, View(store, {}), at, before)


def _take_over(folder: Folder, view: View, at: At, before: Mapping[str, Any]) -> None:
    from holdfast.checkpoint import lease, survey
    from holdfast.checkpoint.lease import Lease
    from holdfast.mirror import pull
    from holdfast.mirror.fence import Owner, refuse_if_alive
    from holdfast.mirror.keeper import Keeper

    store = view.store
    refuse_if_alive(store, Owner.here(folder.root))
    want = _want(view, at, before)
    pull.must_hold(view, want)
    with bar("fetching") as progress:
        chosen = pull.choose(view, folder, want, progress=progress)
    if chosen.info is None:
        raise pull.nothing_there(store.url)
    taken = Lease(
        term=survey.take(folder.root).newest_term + 1, claim=f"resume {uuid.uuid4().hex}", attempt=0,
        base=chosen.info.position, owner={"pid": os.getpid(), "host": socket.gethostname()}, time_s=time.time(),
    )  # fmt: skip
    lease.write(folder, taken)
    Keeper(folder.root, store).beat()


def _want(view: View, at: At, before: Mapping[str, Any]) -> Want:
    if at is None:
        return "newest"
    if isinstance(at, int):
        return {"step": at}
    from holdfast.checkpoint.retention import Candidate, best
    from holdfast.mirror.pull import checkpoints
    from holdfast.plan import Best

    rule = before["checkpoint"]["keep"].get("best")
    if not rule:
        raise UsageError(f"the run of {view.store.url} does not say what is best", hint="name a step")
    found = best([Candidate(position=one.position, metrics=one.metrics) for one in checkpoints(view)], Best(**rule))
    if not found:
        raise UsageError(f"no checkpoint on {view.store.url} has the metric {rule['metric']!r}")
    return found[0].position.to_json()
