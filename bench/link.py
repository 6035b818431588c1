"""A call, a command, a stream, an upload and a folder over SSH, way beside way: `python -m bench.link --keep`.

The ways take turns within each round, at no distance and at 50 ms of round trip; the distance is made by a process of
its own and measured without any SSH. Times are medians, with their quartiles. Processors that have waited for an
answer from afar run the same code more slowly than at no distance: a call and a ping after a rest, at no distance, show
how much.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from rich.console import Console
from rich.table import Table

from bench import linkplot, machine, network
from bench.linkways import WAYS, Node, Prepared, Task, Tasks, Way
from tests.labs import sshd as lab
from tests.labs.links import own_links

OURS, COLD, SHARED = "holdfast", "ssh, cold", "ssh, ControlMaster"
FIELD_S = 0.832, 0.045  # of a command, cold and over ControlMaster, as users tell
MORE_S, FASTER, SHARE = 0.001, 100, 0.95  # targets: a call beyond its round trip, against cold ssh, of ssh's upload
FIRST_S = 2.0  # target: from a host that is up and bare to its first answer
REST_S = 0.05  # as long as an answer from afar takes
RESTED = {"ping": "ping after rest", "call": "call after rest"}
Facts: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured; `calls` and `commands` in each round, the larger tasks once."""

    rounds: int = 5
    trips_s: tuple[float, ...] = (0.0, 0.05)
    calls: int = 20
    commands: int = 5
    upload_bytes: int = 1 << 30
    stream_bytes: int = 256 << 20
    files: int = 3000
    file_bytes: int = 14_000

    def times(self, task: str) -> int:
        """How often in a round."""
        if task in ("ping", "call", *RESTED.values()):
            return self.calls
        return self.commands if task == "command" else 1

    def size_bytes(self, task: str) -> int | None:
        """What the task moves, where its speed is meant."""
        return {"upload": self.upload_bytes, "stream": self.stream_bytes}.get(task)


def main() -> int:
    given = _arguments()
    facts = measure(Amount(rounds=given.rounds), say=lambda line: print(line, file=sys.stderr, flush=True))
    console = Console(width=None if sys.stdout.isatty() else 160)
    for trip in facts["trips"]:
        console.print(table(facts["rows"], trip))
    for sentence in facts["targets"]:
        console.print(sentence)
    if given.keep:
        path = machine.keep("link", facts)
        linkplot.plot(path.with_suffix(".png"), facts)
        console.print(str(path))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=Amount().rounds)
    parser.add_argument("--keep", action="store_true", help="write bench/results/link.json and .png")
    return parser.parse_args()


def measure(amount: Amount, *, say: Callable[[str], object], bundles: Path | None = None) -> Facts:
    """All ways at all distances; `say` hears how far it is. bundles: the wheels that a node gets, if they are there."""
    ways = [way for way in WAYS if not way.is_missing]
    trips = [{"wanted_s": trip_s, "measured_s": _trip_s(trip_s)} for trip_s in amount.trips_s]
    times: dict[tuple[float, str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        nodes = stack.enter_context(_nodes(amount, bundles))
        works = {
            (trip_s, title, task): work
            for trip_s, node in nodes.items()
            for way in ways
            for title, task, work in _works(way, stack.enter_context(way.connect(node)))
        }
        works |= {
            (trip_s, title, RESTED[task]): Prepared(lambda: time.sleep(REST_S), work)
            for (trip_s, title, task), work in works.items()
            if title == OURS and task in RESTED and not trip_s
        }
        for number in range(amount.rounds):
            for key, work in works.items():
                times.setdefault(key, []).extend(_timed(work) for _ in range(amount.times(key[2])))
            say(f"round {number + 1} of {amount.rounds}")
    rows = [_row(*key, taken, amount.size_bytes(key[2])) for key, taken in times.items()]
    return {
        "ssh": subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.strip(),
        "packages": {way.package: version(way.package) for way in ways if way.package},
        "absent": [way.title for way in WAYS if way.is_missing],
        "upload_bytes": amount.upload_bytes,
        "stream_bytes": amount.stream_bytes,
        "files": amount.files,
        "rounds": amount.rounds,
        "trips": trips,
        "targets": [said for trip in trips for said in targets(rows, trip)],
        "rows": rows,
    }


@contextlib.contextmanager
def _nodes(amount: Amount, bundles: Path | None) -> Iterator[dict[float, Node]]:
    """Two servers of our own, as far away as is asked, and what is brought there."""
    with tempfile.TemporaryDirectory(prefix="link-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        user, home = stack.enter_context(lab.person())
        server = stack.enter_context(lab.sshd(folder / "ssh", user, home, options={"Subsystem": "sftp internal-sftp"}))
        nobody, empty = stack.enter_context(lab.person())
        apart = {"SetEnv": f"HOLDFAST_HOME={empty}/holdfast"}
        bare = stack.enter_context(lab.sshd(folder / "bare", nobody, empty, options=apart))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("HOLDFAST_SSH_CONFIG", str(server.config))
        # a holdfast that was installed is not compiled at each start
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(folder / "bytecode"))
        stack.enter_context(own_links(folder / "home", patch, bundles))
        payload, tree = _written(folder, amount)
        nodes = {}
        for trip_s in amount.trips_s:
            port, other = (stack.enter_context(network.delayed(each.port, trip_s)) for each in (server, bare))
            nodes[trip_s] = Node(
                alias=_named(server.config, f"node-{trip_s * 1000:g}ms", server, port),
                bare=_named(server.config, f"bare-{trip_s * 1000:g}ms", bare, other),
                config=server.config, port=port, user=user, key=server.folder / "key",
                known_hosts=server.folder / "known_hosts", inbox=home, payload=payload, tree=tree,
                stream_bytes=amount.stream_bytes,
            )  # fmt: skip
        yield nodes


def _written(folder: Path, amount: Amount) -> tuple[Path, Path]:
    """A file to upload, and a folder of many small ones."""
    payload, tree = folder / "payload", folder / "tree"
    some = os.urandom(1 << 20)
    with payload.open("wb") as file:
        for offset in range(0, amount.upload_bytes, len(some)):
            file.write(some[: amount.upload_bytes - offset])
    for number in range(amount.files):
        path = tree / f"{number // 100:03}" / f"{number:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(amount.file_bytes))
    return payload, tree


def _named(known_to: Path, alias: str, server: lab.Sshd, port: int) -> str:
    """Make the server known to ssh, by that configuration, under another name and port."""
    with known_to.open("a") as config, (server.folder / "known_hosts").open("a") as known:
        block = server.config.read_text().partition("Host node\n")[2].partition("Host ")[0]
        config.write(f"Host {alias}\n{block.replace(f'Port {server.port}', f'Port {port}')}")
        known.write(f"[127.0.0.1]:{port} {(server.folder / 'host.pub').read_text()}")
    return alias


def _trip_s(trip_s: float) -> float:
    with network.echo() as port, network.delayed(int(port), trip_s) as far:
        return network.trip_s(far)


def _works(way: Way, tasks: Tasks) -> Iterator[tuple[str, str, Task]]:
    for name, work in tasks.items():
        task, _, title = name.partition("/")
        yield title or way.title, task, work


def _timed(task: Task) -> float:
    """Do it; the seconds."""
    if isinstance(task, Prepared):
        task.before()
        return _timed(task.work)
    began_s = time.perf_counter()
    task()
    return time.perf_counter() - began_s


def _row(trip_s: float, title: str, task: str, times_s: Sequence[float], size_bytes: int | None) -> Facts:
    low_s, median_s, high_s = statistics.quantiles(times_s, n=4) if len(times_s) > 1 else list(times_s) * 3
    row = {"trip_s": trip_s, "way": title, "task": task, "median_s": median_s, "low_s": low_s, "high_s": high_s}
    speed = {"bytes_per_s": size_bytes / median_s} if size_bytes else {}
    return {**row, **speed, "times_s": [round(each_s, 6) for each_s in times_s]}


def targets(rows: Sequence[Facts], trip: Facts) -> list[str]:
    """A sentence for each target at one distance: met or not, with the numbers; and what the field tells, beside."""
    at = {(row["way"], row["task"]): row["median_s"] for row in rows if row["trip_s"] == trip["wanted_s"]}
    call_s, trip_s, most_s = at[OURS, "call"], trip["measured_s"], trip["measured_s"] + MORE_S
    added_s = call_s - at[OURS, "ping"]
    share, where = at[SHARED, "upload"] / at[OURS, "upload"], f"at {trip['wanted_s'] * 1000:g} ms"
    call = f"a call takes {call_s * 1000:.2f} ms, the round trip alone {trip_s * 1000:.2f} ms"
    added = f"a call takes {added_s * 1000:.2f} ms more than a ping"
    upload = f"an upload is {share:.2f} x as fast as over ssh -S"
    said = [
        f"{_met(call_s <= most_s)}: {where} {call}, target {most_s * 1000:.2f}",
        f"{_met(added_s <= MORE_S)}: {where} {added}, target {MORE_S * 1000:.2f}",
        f"{_met(share >= SHARE)}: {where} {upload}, target {SHARE:.2f}",
    ]
    return said if trip["wanted_s"] else [*said, *_against_cold(at)]


def _against_cold(at: Mapping[tuple[str, str], float]) -> list[str]:
    cold_s, call_s, command_s = at[COLD, "command"], at[OURS, "call"], at[OURS, "command"]
    faster, (field_cold_s, field_s) = cold_s / call_s, FIELD_S
    first_s = at[OURS, "first call"]
    first = f"a host that has nothing of ours answers after {first_s:.2f} s"
    ours = f"a command {cold_s:.3f} s to {command_s:.4f} s ({cold_s / command_s:.0f} x)"
    rested = f"a call takes {at[OURS, RESTED['call']] * 1000:.2f} ms, a ping {at[OURS, RESTED['ping']] * 1000:.2f}"
    field = f"{field_cold_s} s to {field_s} s ({field_cold_s / field_s:.0f} x)"
    return [
        f"{_met(faster >= FASTER)}: a call is {faster:.0f} x faster than a cold ssh, target {FASTER}",
        f"{_met(first_s <= FIRST_S)}: {first}, target {FIRST_S:g}",
        f"beside: {ours}; the field tells {field}",
        f"beside: after {REST_S * 1000:g} ms of rest {rested}",
    ]


def _met(is_met: bool) -> str:
    return "met" if is_met else "NOT met"


def table(rows: Sequence[Facts], trip: Facts) -> Table:
    """Ways at one distance, task by task, the fastest first."""
    measured = f"{trip['measured_s'] * 1000:.2f} ms without SSH"
    made = Table(title=f"Round trip {trip['wanted_s'] * 1000:g} ms ({measured})")
    for head in ("task", "way", "median ms", "quartiles", "MB/s"):
        made.add_column(head, justify="left" if head in ("task", "way") else "right")
    here = [row for row in rows if row["trip_s"] == trip["wanted_s"]]
    for row in sorted(here, key=lambda row: (linkplot.TASKS.index(row["task"]), row["median_s"])):
        quartiles = f"{row['low_s'] * 1000:.2f} – {row['high_s'] * 1000:.2f}"
        speed = f"{row['bytes_per_s'] / 1e6:.0f}" if "bytes_per_s" in row else ""
        made.add_row(row["task"], row["way"], f"{row['median_s'] * 1000:.2f}", quartiles, speed)
    return made


if __name__ == "__main__":
    sys.exit(main())
