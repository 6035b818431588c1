"""The node side: `python -m holdfast node shim|supervisor|archiver RUN_DIR`, other ends of a sync and a link."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.errors import UsageError
from holdfast.runs import RunDir, make_runtime


def main(argv: Sequence[str]) -> int:
    """Be one process of a run; returns its exit status. Raises UsageError."""
    if argv[:1] in (["receive"], ["send"]):
        from holdfast.sync import ends

        return ends.main(argv)
    if argv == ["channels"]:
        from holdfast.node import channels

        return channels.main()
    roles = ("shim", "supervisor", "archiver")
    if len(argv) < 2 or argv[0] not in roles:
        raise UsageError(f"holdfast node {' '.join(argv)}: expected {'|'.join(roles)} RUN_DIR")
    role, run_dir, flags = argv[0], Path(argv[1]), set(argv[2:])
    runtime = make_runtime(RunDir(run_dir))
    if role == "shim":
        from holdfast.node import shim

        return shim.main(run_dir, runtime, alone="--alone" in flags, detach="--detach" in flags)
    if role == "supervisor":
        from holdfast.node import supervisor

        return supervisor.main(run_dir)
    from holdfast.node import archiver

    return archiver.main(run_dir)
