"""An index for people with a bucket browser: one small object a checkpoint, found by job, epoch and step.

Derived from the manifests; nothing of ours reads it.
"""

from __future__ import annotations

import json

from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.stores import Store


def key_of(info: CheckpointInfo) -> str:
    """`index/JOB/epoch-00002/step-000000120.3-17.json`; the numbers behind the dot are term and sequence."""
    return f"index/{info.run}/epoch-{info.epoch:05d}/step-{info.step:09d}.{info.term}-{info.sequence}.json"


def entry_of(info: CheckpointInfo) -> bytes:
    """What the object says."""
    names = ("run", "step", "epoch", "term", "sequence", "time_s", "reason", "metrics", "world", "size_bytes")
    told = {name: getattr(info, name) for name in names}
    return json.dumps({**told, "manifest": f"manifests/{info.path.name}"}, indent=1, sort_keys=True).encode() + b"\n"


def mend(store: Store, found: list[CheckpointInfo], *, doubt: bool = False) -> int:
    """Make the index say what is there; how many objects were wrong. `doubt`: look into those that are there, too."""
    wanted = {key_of(info): entry_of(info) for info in found}
    there = store.list("index/")
    wrong = {key for key, entry in wanted.items() if there.get(key) != len(entry)}
    if doubt:
        wrong |= {key for key, entry in wanted.items() if key in there and store.get(key) != entry}
    for key in wrong:
        store.put(key, wanted[key])
    stale = set(there) - set(wanted)
    for key in stale:
        store.delete(key)
    return len(wrong) + len(stale)
