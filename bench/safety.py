"""Every checkpoint engine faces the same faults: `python -m bench.safety`, or `make safety` for all of them.

Each engine is put to the faults by a process of its own. What was done in a trial follows from engine, fault and seed:
`python -m bench.safety --engines dcp_same_id --faults kill --first-seed 7 --trials 1` repeats one. Kills hit real
processes at a moment drawn from the seed, so those repeat as often as the machine repeats itself; the others exactly.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import engines, faults, machine
from bench.faults import Bench, DoesNotSave, Fault
from bench.judge import BAD, Verdict
from bench.record import NotRecorded, audit, needs_strace, record

Line: TypeAlias = dict[str, Any]
_ROOT = Path(__file__).parents[1]
_BAD = [verdict.value for verdict in BAD]


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every disk is unmounted
    given = _arguments()
    chosen = {name: engine for name, engine in engines.every().items() if _among(name, given.engines)}
    wanted = [fault for name, fault in faults.every().items() if _among(name, given.faults)]
    if given.worker:
        _work(given, wanted)
        return 0
    console = Console(stderr=True)
    lines: list[Line] = []
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        for name, engine in chosen.items():
            missing = engine.missing()
            if missing:
                lines.append({"engine": name, "absent": f"{missing} is not installed"})
                continue
            task = progress.add_task(engine.title)
            for line in _ask(name, given):
                lines.append(line)
                progress.update(task, description=f"{engine.title}: {_said(line)}")
            if given.keep:
                _keep(lines, given)
    Console(width=None if sys.stdout.isatty() else 200).print(table(lines, wanted))
    for line in lines:
        if line["engine"].startswith("holdfast") and line.get("verdict") in _BAD:
            console.print(f"[red]{_said(line)}[/red]")
    if given.keep:
        console.print(_keep(lines, given))
    return int(any(line["engine"].startswith("holdfast") and line.get("verdict") in _BAD for line in lines))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", default="", help="names of files in bench/engines, with commas; default all")
    parser.add_argument("--faults", default="", help="names of files in bench/faults, or `audit`; default all")
    parser.add_argument("--trials", type=int, default=24, help="of each fault and engine")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--size-mb", type=float, default=16, help="of the state")
    parser.add_argument("--folder", type=Path, default=Path.home(), help="where trials lie: on the disk to be tested")
    parser.add_argument("--keep", action="store_true", help="write bench/results/safety.json and safety.md")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _among(name: str, given: str) -> bool:
    return not given or name in given.split(",")


def _said(line: Line) -> str:
    about = [line.get("fault", ""), f"seed {line['seed']}" if "seed" in line else "", line.get("verdict", "")]
    return " · ".join(filter(None, [*about, line.get("detail", "")[:200]]))


# ---- one engine, in a process of its own


def _ask(name: str, given: argparse.Namespace) -> Iterator[Line]:
    argv = [sys.executable, "-W", "ignore", "-m", "bench.safety", "--worker", "--engines", name]
    argv += ["--faults", given.faults, "--trials", str(given.trials), "--first-seed", str(given.first_seed)]
    argv += ["--size-mb", str(given.size_mb), "--folder", str(given.folder)]
    with tempfile.TemporaryFile("w+") as errors:
        worker = subprocess.Popen(argv, cwd=_ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert worker.stdout is not None
        try:
            for line in worker.stdout:
                yield {"engine": name, **json.loads(line)}
        finally:
            worker.terminate()  # nothing to one that has ended; another unmounts and leaves
            worker.wait()
        if worker.returncode != 0:
            errors.seek(0)
            yield {"engine": name, "fault": "harness", "failed": errors.read()[-2000:]}


def _work(given: argparse.Namespace, wanted: Sequence[Fault]) -> None:
    """Answers go to the real stdout; whatever else the engine prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = engines.named(given.engines)
    seeds = range(given.first_seed, given.first_seed + given.trials)
    with tempfile.TemporaryDirectory(prefix="safety-", dir=given.folder) as folder:
        bench = Bench(Path(folder), int(given.size_mb * (1 << 20)))
        if _among("audit", given.faults):
            answers.write(told({"fault": "audit", **_audit(bench, engine)}, bench.folder))
        for fault in wanted:
            for line in _put_to(fault, engine, bench, seeds):
                answers.write(told({"fault": fault.name, **line}, bench.folder))


def told(line: Line, folder: Path) -> str:
    """A line as it travels and is kept; where trials, packages and this checkout lie here is nobody's concern."""
    text = json.dumps(line)
    for place in (folder, sys.prefix, sys.base_prefix, _ROOT):
        text = text.replace(f"{place}/", "")
    return text + "\n"


def _put_to(fault: Fault, engine: engines.Engine, bench: Bench, seeds: range) -> Iterator[Line]:
    spared = fault.missing() or fault.spares(engine)
    if spared:
        yield {"spared": spared}
        return
    try:
        for found in fault.trials(engine, bench, seeds):
            yield {**asdict(found), "verdict": found.verdict.value}
    except (DoesNotSave, NotRecorded) as error:
        yield {"failed": f"{type(error).__name__}: {error}"}


def _audit(bench: Bench, engine: engines.Engine) -> Line:
    if needs_strace():
        return {"spared": needs_strace()}
    try:
        with bench.trial(engine) as trial:
            recorded = record(engine, trial.folder, trial.aside)
            found = audit(recorded, trial.folder, engine.checkpoints(trial.folder))
    except NotRecorded as error:
        return {"failed": str(error)}
    return {**asdict(found), "hazards": sorted(found.hazards)}


# ---- what is shown and kept


def table(lines: Sequence[Line], wanted: Sequence[Fault]) -> Table:
    """Engines down, faults across."""
    made = Table(title="What is left after each fault", show_lines=True)
    made.add_column("engine")
    for fault in wanted:
        made.add_column(fault.title)
    made.add_column("not durable when it says saved")
    for name in dict.fromkeys(line["engine"] for line in lines):
        cells = [_colour(cell(lines, name, fault.name)) for fault in wanted]
        made.add_row(_titled(lines, name), *cells, durability(lines, name))
    return made


def _titled(lines: Sequence[Line], name: str) -> str:
    absent = next((line["absent"] for line in lines if line["engine"] == name and "absent" in line), "")
    return f"{engines.named(name).title}" + (f" ({absent})" if absent else "")


def cell(lines: Sequence[Line], engine: str, fault: str) -> str:
    """`24 recovered`, or the counts of each verdict, or why there is none."""
    found = [line for line in lines if line["engine"] == engine and line.get("fault") == fault]
    counts = Counter(line["verdict"] for line in found if "verdict" in line)
    words = [f"{counts[verdict.value]} {verdict.value}" for verdict in Verdict if counts[verdict.value]]
    words += [f"does not run: {line['failed'].splitlines()[0][:110]}" for line in found if line.get("failed")]
    words += [line["spared"] for line in found if "spared" in line]
    return ", ".join(words) or "–"


def durability(lines: Sequence[Line], engine: str) -> str:
    """Of the last save in peace, from the audit."""
    found = next((line for line in lines if line["engine"] == engine and line.get("fault") == "audit"), None)
    if found is None or "undurable_bytes" not in found:
        return "–" if found is None else str(found.get("spared") or found.get("failed"))[:80]
    share = min(1.0, found["undurable_bytes"] / max(found["written_bytes"], 1))
    bytes_ = f"{found['undurable_bytes']:,} B ({share:.0%})" if found["undurable_bytes"] else "0 B"
    return "; ".join([f"{bytes_}, {found['undurable_names']} names", *found["hazards"]])


def _colour(text: str) -> str:
    bad = any(word in text for word in _BAD)
    return f"[red]{text}[/red]" if bad else text


def _keep(lines: list[Line], given: argparse.Namespace) -> Path:
    """`safety.json` with every trial, `safety.md` with the table; what was not asked for keeps its lines."""
    order = list(engines.every())
    lines = sorted([*_not_asked(given), *lines], key=lambda line: order.index(line["engine"]))
    versions = {}
    for name, engine in engines.every().items():
        if not engine.missing():
            versions[name] = engine.versions()
    there = {line.get("fault") for line in lines}
    chosen = [fault for name, fault in faults.every().items() if name in there]
    path = machine.keep(
        "safety",
        {
            "trials_each": given.trials, "first_seed": given.first_seed, "state_mb": given.size_mb,
            "versions": versions, "lines": lines,
        },
    )  # fmt: skip
    path.with_suffix(".md").write_text(markdown(lines, chosen, given))
    return path


def _not_asked(given: argparse.Namespace) -> list[Line]:
    """What an earlier run with as many trials, seeds and bytes has kept of what this one leaves out."""
    path = machine.RESULTS / "safety.json"
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    if (before["trials_each"], before["first_seed"], before["state_mb"]) != (
        given.trials, given.first_seed, given.size_mb,
    ):  # fmt: skip
        return []
    return [line for line in before["lines"] if not _is_asked(line, given)]


def _is_asked(line: Line, given: argparse.Namespace) -> bool:
    """Whether this run says anew what the line says. One that is of no fault is of the whole engine."""
    known = line.get("fault") in {*faults.every(), "audit"}
    return _among(line["engine"], given.engines) and (not known or _among(line["fault"], given.faults))


def markdown(lines: Sequence[Line], wanted: Sequence[Fault], given: argparse.Namespace) -> str:
    """The table for people, with versions and where each engine's use is documented."""
    about = machine.describe()
    rows = [["engine", *(fault.title for fault in wanted), "not durable when it says saved"]]
    names = list(dict.fromkeys(line["engine"] for line in lines))
    for name in names:
        cells = [cell(lines, name, fault.name) for fault in wanted]
        rows.append([_titled(lines, name), *cells, durability(lines, name)])
    body = ["| " + " | ".join(row) + " |" for row in rows]
    body.insert(1, "| " + " | ".join("---" for _ in rows[0]) + " |")
    used = [f"| {engines.named(name).title} | {_versions(name)} | {_used(name)} |" for name in names]
    day = time.strftime("%Y-%m-%d", time.gmtime())
    about_machine = f"{day}, {about['cpu']}, {about['cores']} cores, kernel {about['kernel']}."
    trials = f"{given.trials} trials of each fault, seeds from {given.first_seed}, a state of {given.size_mb:g} MB."
    words = "What the words mean: [the guide](../../docs/guides/safety-harness.md). Each trial's seed: `safety.json`."
    return "\n".join([
        "# What each checkpoint engine leaves after each fault", "",
        f"{trials} {about_machine} {words}",
        "", *body, "", "| engine | versions | used as in |", "| --- | --- | --- |", *used, "",
    ])  # fmt: skip


def _versions(name: str) -> str:
    engine = engines.named(name)
    return (
        engine.missing() + " missing"
        if engine.missing()
        else ", ".join(f"{k} {v}" for k, v in engine.versions().items())
    )


def _used(name: str) -> str:
    engine = engines.named(name)
    return "; ".join(
        filter(None, [engine.documented, engine.retention and f"removes: {engine.retention}", engine.note])
    )


if __name__ == "__main__":
    sys.exit(main())
