"""A mirror as the one who writes to it sees it: fence, push, retention, index, in the order that is safe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from holdfast.checkpoint import canonical, lease, survey
from holdfast.checkpoint.folder import VERSION, format_problems
from holdfast.checkpoint.lease import Lease
from holdfast.checkpoint.survey import CheckpointInfo
from holdfast.errors import HoldfastError
from holdfast.fsio import DISK
from holdfast.mirror import index, push, retire
from holdfast.mirror.catalog import is_complete
from holdfast.mirror.fence import Fence, Owner
from holdfast.mirror.push import Progress, Pushed
from holdfast.mirror.throttle import Throttle
from holdfast.mirror.view import ROOT, View
from holdfast.stores import Store

_FORMAT = canonical.encode_checked({"format": "holdfast", "version": VERSION})


class Keeper:
    """One folder's mirror. Every method raises StoreRefused; Superseded once another machine has taken over."""

    def __init__(
        self, root: Path, store: Store, *, bytes_per_s: float | None = None, known: Iterable[str] = ()
    ) -> None:
        """`known`: leases that the folder has had, besides those that lie in it."""
        self.store = store
        self.lease: Lease | None = None  # the one held there
        self._root = root
        self._known = set(known)
        self._throttle = Throttle(bytes_per_s)
        self._fence = Fence(store, Owner.here(root))
        self._seen: dict[str, bytes] = {}
        self._begun = False

    @property
    def enforced(self) -> bool | None:
        """Whether the store refuses to create what exists; None before it was needed."""
        return self._fence.enforced

    def hold(self) -> Lease:
        """Be the one who writes, by the folder's newest lease. Raises HoldfastError when the folder has none."""
        own = survey.take(self._root).lease
        if own is None:
            raise HoldfastError(f"{self._root} has no lease yet", hint="the run's first attempt takes one")
        if not self._begun:
            format_problems(ROOT, self.view())  # raises what a newer version has written
        names = [name for name in DISK.list(lease.folder(self._root)) if lease.term_of(name) is not None]
        if self._fence.hold(own, [*names, *self._known]):
            self._fence.beat(own)
        self._known.add(own.file_name)
        self.lease = own
        if not self._begun:
            if self.store.head("format.json") is None:
                self.store.put("format.json", _FORMAT)
            self._begun = True
        return own

    def beat(self) -> None:
        """Say that we live, if we may write at all."""
        self._fence.beat(self.hold())

    def rest(self) -> None:
        """Say that we have ended."""
        if self.lease is not None:
            self._fence.rest(self.lease)

    def view(self) -> View:
        """What is there now."""
        return View(self.store, self._seen)

    def there(self) -> list[CheckpointInfo]:
        """Every whole checkpoint of the mirror, oldest first."""
        view = self.view()
        return [info for info in survey.take(ROOT, view).checkpoints if is_complete(view, info.packs)]

    def push(self, info: CheckpointInfo, progress: Progress = lambda done, total: None) -> Pushed:
        """Send one checkpoint of the folder. Raises Damaged, OSError."""
        self.hold()
        compress = not self.store.url.startswith(("/", "file:"))
        return push.push(
            self._root, info, self.view(), self._throttle, allowed=self.hold, compress=compress, progress=progress
        )

    def retire(self, policy: retire.Policy, *, grace_s: float = retire.GRACE_S) -> list[CheckpointInfo]:
        """Apply retention, and make the index say what is left."""
        self.hold()
        removed = retire.retire(self.view(), policy, grace_s=grace_s)
        self.mend_index()
        return removed

    def mend_index(self, *, doubt: bool = False) -> int:
        """Make the index say what is there; how many entries were wrong."""
        self.hold()
        return index.mend(self.store, self.there(), doubt=doubt)
