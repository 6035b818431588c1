"""How long until the state is back, engine beside engine, against reading the same bytes: `python -m bench.restore`.

Cold: the files were taken out of the page cache (POSIX_FADV_DONTNEED). Warm: they were just read. The clock starts in a
process that has imported everything and holds the weights to be filled, and stops when they are filled. What an engine
sets up for it (a Trainer, a process that will save) is its own time; holdfast is timed with its run and without one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from bench import disk, engines, machine
from bench.engines import Engine
from bench.faults import Bench
from bench.faults.flip import save_in_peace
from bench.judge import Verdict, judge
from bench.restoreplot import plot
from bench.trials import Trial

TARGET = 0.85  # of the speed of the raw read
Facts: TypeAlias = dict[str, Any]


def main() -> int:
    given = _arguments()
    chosen = {name: engine for name, engine in engines.every().items() if _wanted(name, engine, given.engines)}
    size = int(given.state_mb * 1e6)
    times: dict[str, list[Facts]] = {}
    with tempfile.TemporaryDirectory(prefix="restore-", dir=given.folder) as folder, ExitStack() as stack:
        bench = Bench(Path(folder), size)
        raw = _raw_file(bench)
        trials = {name: stack.enter_context(bench.trial(engine)) for name, engine in chosen.items()}
        for name, trial in trials.items():
            print(f"saving with {name}", file=sys.stderr, flush=True)
            save_in_peace(trial)
        for _ in range(given.rounds):
            disk.forget(raw.parent)
            cold = disk.read_s(raw, direct=True)
            disk.read_s(raw, direct=False)
            _add(times, "raw", cold, disk.read_s(raw, direct=False))
            for name, trial in trials.items():
                for key, live in _ways(name, trial):
                    disk.forget(trial.folder)
                    _add(times, key, _seconds(trial, live), _seconds(trial, live))
                print(f"{name}: {times[name][-1]}", file=sys.stderr, flush=True)
    rows = [_row(key, found, times["raw"]) for key, found in times.items()]
    verdicts = targets(rows)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table(rows, size))
    for sentence in verdicts:
        console.print(sentence)
    if given.keep:
        kept = {"state_bytes": size, "targets": verdicts, "engines": rows, "rounds": times}
        path = machine.keep(f"restore-{given.state_mb:g}mb", kept)
        plot(path.with_suffix(".png"), rows, size)
        console.print(str(path))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state-mb", type=float, default=600, help="of the state, in 10^6 bytes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", default="", help="names of files in bench/engines, with commas; default all")
    parser.add_argument("--folder", type=Path, default=Path.home(), help="on the disk to be measured")
    parser.add_argument("--keep", action="store_true", help="write bench/results/restore-<N>mb.json and .png")
    return parser.parse_args()


def _wanted(name: str, engine: Engine, given: str) -> bool:
    """Those that are installed; a supervised one loads in a process that nobody here can time."""
    return (name in given.split(",") if given else True) and not engine.missing() and not engine.supervised


def _ways(name: str, trial: Trial) -> list[tuple[str, bool]]:
    """holdfast restores into a run, or loads a folder without one."""
    return [(name, False), (f"{name} without a run", True)] if name.startswith("holdfast") else [(name, False)]


def _raw_file(bench: Bench) -> Path:
    """As many bytes in one plain file; no zeros, which a disk may never have written."""
    path = bench.folder / "raw" / "file"
    path.parent.mkdir()
    some = os.urandom(disk.BLOCK)
    with path.open("wb") as file:
        for at in range(0, bench.size_bytes, len(some)):
            file.write(some[: bench.size_bytes - at])
    return path


def _seconds(trial: Trial, live: bool) -> float | None:
    outcome = trial.load(live=live)
    trial.kill_all()
    told = trial.told()
    verdict, _ = judge(outcome, saved=told.saved, begun=max(told.begun, default=0), damaged=False)
    return outcome.seconds if verdict is Verdict.RECOVERED else None


def _add(times: dict[str, list[Facts]], key: str, cold_s: float | None, warm_s: float | None) -> None:
    times.setdefault(key, []).append({"cold_s": cold_s, "warm_s": warm_s})


def _row(key: str, found: Sequence[Facts], raw: Sequence[Facts]) -> Facts:
    row: Facts = {"engine": key, "title": "raw read" if key == "raw" else _title(key)}
    for word in ("cold_s", "warm_s"):
        values = [each[word] for each in found if each[word] is not None]
        row[word] = statistics.median(values) if values else None
        row[f"{word}_raw"] = statistics.median(each[word] for each in raw)
    return row


def _title(key: str) -> str:
    name, _, more = key.partition(" ")
    return f"{engines.named(name).title} {more}".strip()


def targets(rows: Sequence[Facts]) -> list[str]:
    """Met or not, with the numbers; cold, since warm memory is no disk."""
    said = []
    for row in rows:
        if row["engine"].startswith("holdfast") and row["cold_s"]:
            share = row["cold_s_raw"] / row["cold_s"]
            met = "met" if share >= TARGET else "NOT met"
            said.append(f"{met}: {row['title']}, cold: {share:.1%} of the raw read's speed, target {TARGET:.0%}")
    return said


def table(rows: Sequence[Facts], size_bytes: int) -> Table:
    """Fastest cold restore first."""
    made = Table(title=f"A state of {size_bytes / 1e6:g} MB, from its files back into the weights")
    for head in ("engine", "cold ms", "of raw", "warm ms", "of raw"):
        made.add_column(head, justify="left" if head == "engine" else "right")
    for row in sorted(rows, key=lambda row: row["cold_s"] or float("inf")):
        cells: list[str] = []
        for word in ("cold_s", "warm_s"):
            took = row[word]
            cells += [f"{took * 1000:.0f}", f"{row[f'{word}_raw'] / took:.0%}"] if took else ["failed", "–"]
        made.add_row(row["title"], *cells)
    return made


if __name__ == "__main__":
    sys.exit(main())
