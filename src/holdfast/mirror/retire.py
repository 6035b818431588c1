"""Keep a mirror short: the same `keep` policy as the folder's. Only its owner calls this.

Manifests go at once. A pack goes a day after the last manifest that needs it: somebody may be reading it, and nobody
can lock an object. Since when a pack is not needed stands in `unneeded.json`; were that lost, the day begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from holdfast.checkpoint import canonical, survey
from holdfast.checkpoint.canonical import Damaged
from holdfast.checkpoint.lineage import Position
from holdfast.checkpoint.survey import CheckpointInfo, Survey
from holdfast.mirror import clock
from holdfast.mirror.catalog import is_complete
from holdfast.mirror.view import ROOT, View, pack_key
from holdfast.stores import Store

GRACE_S = 86400.0
_UNNEEDED = "unneeded.json"

# the candidates of a line → positions to keep
Policy = Callable[[list[tuple[CheckpointInfo, bool]]], Collection[Position]]


def retire(view: View, policy: Policy, *, grace_s: float = GRACE_S) -> list[CheckpointInfo]:
    """Remove what `policy` does not keep; returns it. Raises StoreRefused."""
    found = survey.take(ROOT, view)
    live = [info for info in found.checkpoints if info.live]
    kept = policy([(info, is_complete(view, info.packs)) for info in live])
    doomed = [info for info in live if info.position not in kept]
    for info in doomed:
        view.store.delete(f"manifests/{info.path.name}")
    if not found.unreadable:  # what a damaged manifest needs nobody knows
        _retire_packs(view, _needed(found, doomed), grace_s)
    return doomed


def _needed(found: Survey, doomed: list[CheckpointInfo]) -> set[str]:
    gone = {info.path.name for info in doomed}
    return {pack_key(entry.name) for info in found.checkpoints if info.path.name not in gone for entry in info.packs}


def _retire_packs(view: View, needed: set[str], grace_s: float) -> None:
    idle = [key for key in view.sizes if key.startswith("packs/") and key not in needed]
    since = _since(view.store)
    if not idle and not since:
        return
    now_s = clock.now_s(view.store)
    counted = {key: since.get(key, now_s) for key in idle}
    over = [key for key, since_s in counted.items() if now_s - since_s >= grace_s]
    for key in over:
        view.store.delete(key)
    left = {key: since_s for key, since_s in counted.items() if key not in over}
    if left != since:
        view.store.put(_UNNEEDED, canonical.encode_checked({"packs": left}))


def _since(store: Store) -> dict[str, float]:
    try:
        packs = canonical.decode_checked(store.get(_UNNEEDED), _UNNEEDED).get("packs")
    except (FileNotFoundError, Damaged):
        return {}
    if not isinstance(packs, dict):
        return {}
    return {str(key): float(value) for key, value in packs.items() if isinstance(value, (int, float))}
