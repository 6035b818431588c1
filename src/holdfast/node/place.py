"""Whether a folder outlives the machine, or the container."""

from __future__ import annotations

from pathlib import Path

_GONE_WITH = {"tmpfs": "a restart", "ramfs": "a restart", "overlay": "the container", "aufs": "the container"}


def ephemeral(folder: Path, mounts: str | None = None) -> str | None:
    """A sentence when `folder` will not last, else None. mounts: as /proc/self/mountinfo, by default that."""
    real = folder.resolve()
    if Path("/tmp") in (real, *real.parents):  # noqa: S108 - looked at, not written to
        return f"checkpoints in {folder} are lost whenever /tmp is cleaned"
    kind = _file_system(real, mounts if mounts is not None else Path("/proc/self/mountinfo").read_text())
    if kind not in _GONE_WITH:
        return None
    return f"checkpoints in {folder} lie on {kind} and are lost with {_GONE_WITH[kind]}"


def _file_system(path: Path, mounts: str) -> str:
    """The type of the mount that holds `path`; proc(5) has the format of the lines."""
    best, kind = "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].replace("\\040", " ")
        if len(point) >= len(best) and Path(point) in (path, *path.parents):
            best, kind = point, right.split(" ")[0]
    return kind
