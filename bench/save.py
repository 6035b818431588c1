"""What a checkpoint adds to a training, engine beside engine: `python -m bench.save --state-mb 100`.

The engines take turns within each round. Beside each time stands what of the save is not durable when the engine says
"saved", from a recording of its system calls. Times of the first two saves of a training are kept apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from bench import disk, engines, machine, timing
from bench.engines import Engine
from bench.faults import Bench, DoesNotSave
from bench.record import NotRecorded, audit, needs_strace, record
from bench.saveplot import plot, title
from bench.timing import Pace
from bench.trials import Trial

WARM = 2  # saves of each training that do not count
LONGEST_S = 540
OURS = "holdfast_alone"
Facts: TypeAlias = dict[str, Any]


def main() -> int:
    given = _arguments()
    chosen = {name: engine for name, engine in engines.every().items() if _wanted(name, engine, given.engines)}
    absent = [name for name, engine in engines.every().items() if engine.missing() and not engine.supervised]
    size, rounds = int(given.state_mb * 1e6), timing.rounds_in(given.step_ms / 1000, given.threads)
    found: dict[str, list[Facts]] = {name: [] for name in chosen}
    raw: list[float] = []
    with tempfile.TemporaryDirectory(prefix="save-", dir=given.folder) as folder:
        bench = Bench(Path(folder), size)
        for number in range(given.rounds):
            raw.append(disk.write_s(bench.folder, size))
            for name, engine in chosen.items():
                found[name].append(_measure(bench, engine, given, rounds))
                print(f"round {number + 1} {name}: {_short(found[name][-1])}", file=sys.stderr, flush=True)
        durable = {name: _durability(bench, engine, wanted=given.audit) for name, engine in chosen.items()}
    rows = [_row(name, found[name], durable[name]) for name in chosen]
    facts = {
        "state_bytes": size,
        "steps": given.steps,
        "threads": given.threads,
        "raw_durable_write_s": statistics.median(raw),
        "absent": absent,
    }
    verdicts = targets(rows)
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table(rows, facts))
    for sentence in verdicts:
        console.print(sentence)
    if given.keep:
        name = f"save-{given.state_mb:g}mb" + (f"-{given.threads}threads" if given.threads > 1 else "")
        path = machine.keep(name, {**facts, "targets": verdicts, "engines": rows, "rounds": found})
        plot(path.with_suffix(".png"), rows, facts)
        console.print(str(path))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state-mb", type=float, default=100, help="of the state, in 10^6 bytes")
    parser.add_argument("--steps", type=int, default=20, help="between two saves")
    parser.add_argument("--step-ms", type=float, default=50, help="of computing in a step")
    parser.add_argument("--threads", type=int, default=1, help="that the training computes on")
    parser.add_argument("--saves", type=int, default=8, help=f"of each training; the first {WARM} are kept apart")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", default="", help="names of files in bench/engines, with commas; default all")
    parser.add_argument("--folder", type=Path, default=Path.home(), help="on the disk to be measured")
    parser.add_argument("--no-audit", dest="audit", action="store_false", help="leave out what is durable")
    parser.add_argument("--keep", action="store_true", help="write bench/results/save-<N>mb[-<T>threads].json and .png")
    return parser.parse_args()


def _wanted(name: str, engine: Engine, given: str) -> bool:
    """Those that are installed; a supervised one trains in a process of its own, where nobody takes the time."""
    return (name in given.split(",") if given else True) and not engine.missing() and not engine.supervised


def _measure(bench: Bench, engine: Engine, given: argparse.Namespace, rounds: int) -> Facts:
    with bench.trial(engine) as trial:
        trial.pace = Pace(steps=given.steps, rounds=rounds, threads=given.threads, times=trial.aside / "times")
        with _Memory(trial) as memory:
            trial.save(last=given.saves + 1)
            told = trial.until(lambda told: told.done or bool(told.refused), within_s=LONGEST_S)
        if not told.done:
            return {"failed": str(DoesNotSave(f"{told.refused or 'too slow'}"))[:300]}
        made: Facts = json.loads(trial.pace.times.read_text())
        made["peak_bytes"] = memory.peak_bytes
        made["archiver"] = _archiver(trial.folder)
        return made


class _Memory:
    """The most memory that a trial's processes had together, each shared page divided among them (PSS)."""

    def __init__(self, trial: Trial) -> None:
        self._trial, self.peak_bytes = trial, 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.5):
            self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(pid) for pid in self._trial.pids()))


def _pss_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _archiver(folder: Path) -> list[Facts]:
    """What holdfast's archiver says each commit took; empty for the others."""
    path = folder / "run" / "archiver.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    words = ("seconds", "write_seconds", "verify_seconds", "written_bytes")
    return [{word: line[word] for word in words} for line in lines if line["event"] == "committed"]


def _short(facts: Facts) -> str:
    return facts.get("failed") or f"added {_median([facts], 'added_s') * 1000:.0f} ms"


def _durability(bench: Bench, engine: Engine, *, wanted: bool) -> str:
    if not wanted:
        return "not looked at"
    if needs_strace():
        return needs_strace()
    try:
        with bench.trial(engine) as trial:
            recorded = record(engine, trial.folder, trial.aside)
            found = audit(recorded, trial.folder, engine.checkpoints(trial.folder))
    except NotRecorded as error:
        return f"not recorded: {str(error)[:60]}"
    lacking = f"{found.undurable_share:.0%} of bytes, {found.undurable_names} names"
    return "all durable" if not (found.undurable_bytes or found.undurable_names) else f"not durable: {lacking}"


def _counted(rounds: Sequence[Facts]) -> list[Facts]:
    return [save for facts in rounds for save in facts.get("saves", [])[WARM:]]


def _median(rounds: Sequence[Facts], word: str) -> float:
    found = [save[word] for save in _counted(rounds) if save[word] is not None]
    return statistics.median(found) if found else float("nan")


def _row(name: str, rounds: Sequence[Facts], durable: str) -> Facts:
    """An engine's line: medians over all rounds, the worst step of all."""
    engine = engines.named(name)
    failed = next((facts["failed"] for facts in rounds if "failed" in facts), "")
    row: Facts = {"engine": name, "title": engine.title, "versions": engine.versions(), "durable": durable}
    if failed or not _counted(rounds):
        return {**row, "failed": failed or "too few saves"}
    commits = [each for facts in rounds for each in facts["archiver"][WARM:]]
    return {
        **row,
        "added_s": _median(rounds, "added_s"),
        "blocked_s": _median(rounds, "blocked_s"),
        "worst_step_s": max(save["worst_s"] for save in _counted(rounds)),
        "step_s": statistics.median(facts["peace_step_s"] for facts in rounds),
        "acknowledged_s": _median(rounds, "acknowledged_s"),
        "first_blocked_s": max(facts["saves"][0]["blocked_s"] for facts in rounds),
        "copy_s": min(facts["copy_s"] for facts in rounds),
        "peak_bytes": max(facts["peak_bytes"] for facts in rounds),
        "write_s": statistics.median(each["write_seconds"] for each in commits) if commits else None,
        "verify_s": statistics.median(each["verify_seconds"] for each in commits) if commits else None,
        "written_bytes": statistics.median(each["written_bytes"] for each in commits) if commits else None,
    }


def targets(rows: Sequence[Facts]) -> list[str]:
    """A sentence for each target of holdfast: met or not, with the numbers."""
    measured = {row["engine"]: row for row in rows if "failed" not in row}
    ours = measured.get(OURS)
    if ours is None:
        return [f"{OURS} was not measured"]
    said = [_target("blocked", ours["blocked_s"], "one copy of the state", ours["copy_s"], 1.5)]
    meta = measured.get("torch_checkpointing")
    if meta is not None:
        said.append(_target("added in all", ours["added_s"], "torch_checkpointing", meta["added_s"], 0.5))
    for name, row in measured.items():
        if not name.startswith("holdfast"):
            said.append(_target("added in all", ours["added_s"], name, row["added_s"], 1.0))
    return said


def _target(what: str, ours_s: float, peer: str, theirs_s: float, most: float) -> str:
    ratio = ours_s / theirs_s if theirs_s > 0 else float("inf")
    met = "met" if ours_s <= most * theirs_s else "NOT met"
    numbers = f"{ours_s * 1000:.1f} ms against {theirs_s * 1000:.1f} ms"
    return f"{met}: {what} {ratio:.2f} x {peer} ({numbers}), target {most:.2f}"


def table(rows: Sequence[Facts], facts: Facts) -> Table:
    """Engines down, cheapest first."""
    made = Table(title=title(facts))
    for head in ("engine", "added ms", "blocked ms", "worst step ms", "until saved ms", "first ms", "peak MB"):
        made.add_column(head, justify="left" if head == "engine" else "right")
    made.add_column("when it says saved")
    for row in sorted(rows, key=lambda row: row.get("added_s", float("inf"))):
        if "failed" in row:
            made.add_row(row["title"], *["–"] * 6, row["failed"][:60])
            continue
        times = ("added_s", "blocked_s", "worst_step_s", "acknowledged_s", "first_blocked_s")
        cells = [f"{row[word] * 1000:.0f}" for word in times]
        made.add_row(row["title"], *cells, f"{row['peak_bytes'] / 1e6:.0f}", row["durable"])
    for name in facts["absent"]:
        made.add_row(engines.named(name).title, *["–"] * 6, "not installed")
    return made


if __name__ == "__main__":
    sys.exit(main())
