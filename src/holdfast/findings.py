"""Things that are wrong or worth knowing about a run, by stable ids. Scripts may rely on an id; its words may change.

Pure. An event `FindingRaised` carries one; `status` shows those that were not cleared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One entry of the catalogue: how bad it is, what it means, and one thing to do."""

    severity: Severity
    meaning: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One kind met in one run; `message` is a sentence with the values."""

    id: str
    severity: Severity
    message: str
    hint: str = ""


CATALOGUE: Mapping[str, Kind] = {
    "save-failed": Kind(
        severity="error",
        meaning="the last save did not commit; training goes on and earlier checkpoints are intact",
        hint="holdfast explain RUN says why",
    ),
    "disk-full": Kind(
        severity="error",
        meaning="there was no space for a checkpoint",
        hint="free space; the next save works again by itself",
    ),
    "checkpoint-damaged": Kind(
        severity="error",
        meaning="a checkpoint did not verify; its copy on the mirror was taken, or an older one",
        hint="holdfast ckpt verify RUN names the damage",
    ),
    "damage-found": Kind(
        severity="error",
        meaning="stored bytes of a checkpoint have changed on the disk; the next save writes again what it shares",
        hint="holdfast ckpt verify RUN names the damage; look at the disk",
    ),
    "ephemeral-checkpoints": Kind(
        severity="warning",
        meaning="checkpoints lie where a reboot or the end of the container deletes them",
        hint="set checkpoint.dir or HOLDFAST_HOME to a disk that stays",
    ),
    "memory-tier-reduced": Kind(
        severity="warning",
        meaning="there is no memory for three copies of the state, so fewer are kept for a restart, or none",
        hint="give the container more memory, or set checkpoint.memory: off",
    ),
    "memory-dir-unusable": Kind(
        severity="warning",
        meaning="copies in memory do not lie in checkpoint.memory_dir, and so end with the container",
        hint="mount a tmpfs with room for three copies there, owned by whoever trains",
    ),
    "hang": Kind(
        severity="error",
        meaning="no step was completed for longer than this run ever took",
        hint="the stacks of all processes are in the run's folder, under stacks/",
    ),
    "no-library": Kind(
        severity="info",
        meaning="the command does not use the library: it is restarted, but nobody sees its progress",
        hint="add holdfast.Run to the script, or give watchdog.progress",
    ),
    "restart-budget": Kind(
        severity="error",
        meaning="the run was restarted as often as allowed and has stopped",
        hint="holdfast explain RUN, mend the cause, then holdfast resume RUN",
    ),
    "segment-unsaved": Kind(
        severity="warning",
        meaning="a segment was over, and the attempt was ended before it had saved",
        hint="let stop_grace_period be longer than a step and a save; holdfast explain RUN",
    ),
    "log-unbounded": Kind(
        severity="warning",
        meaning="the file system cannot release old output, so logs.keep has no effect",
        hint="keep an eye on the disk, or put HOLDFAST_HOME on another file system",
    ),
    "needs-secrets": Kind(
        severity="error",
        meaning="the machine was restarted and a secret of the caller is gone",
        hint="holdfast resume RUN from a shell that has it; {command} and {file} secrets survive",
    ),
    "mirror-unreachable": Kind(
        severity="warning",
        meaning="the mirror cannot be reached; training and local checkpoints go on, and it catches up by itself",
        hint="holdfast ckpt push RUN tries now and says what is wrong",
    ),
    "mirror-superseded": Kind(
        severity="error",
        meaning="another machine has gone on from this run's mirror; nothing more is sent there",
        hint="stop this run, or give it another checkpoint.mirror",
    ),
    "mirror-stop": Kind(
        severity="warning",
        meaning="somebody told this run to stop through its mirror, when its machine could not be reached",
        hint="holdfast resume continues it",
    ),
    "mirror-unfenced": Kind(
        severity="info",
        meaning="the store overwrites what it was asked to create only; two machines are told apart by listing",
        hint="do not resume the same run on two machines at the same moment",
    ),
    "mirror-without-code": Kind(
        severity="info",
        meaning="the code is too large to go to the mirror",
        hint="a resume elsewhere needs it: cd CODE && holdfast resume URL",
    ),
    "mirror-behind": Kind(
        severity="warning",
        meaning="the run ended before its newest checkpoint was on the mirror",
        hint="holdfast ckpt push RUN",
    ),
    "orphans-stuck": Kind(
        severity="warning",
        meaning="processes of an ended attempt cannot be ended; they may hold devices",
        hint="a process in state D waits for the kernel: look at the disk or the driver",
    ),
    "archiver-failed": Kind(
        severity="error",
        meaning="the archiver met something that nobody foresaw; it goes on, and what failed is tried again",
        hint="node.log in the run's folder has the trace: please report it",
    ),
    "process-restarted": Kind(
        severity="info",
        meaning="a process of holdfast died and was brought back; training was not touched",
        hint="node.log in the run's folder may say why",
    ),
}


def finding(identifier: str, message: str, *, hint: str = "", severity: Severity | None = None) -> Finding:
    """A finding of the catalogue; hint and severity are the catalogue's unless given. Raises KeyError."""
    kind = CATALOGUE[identifier]
    return Finding(id=identifier, severity=severity or kind.severity, message=message, hint=hint or kind.hint)
