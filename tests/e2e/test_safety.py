"""The safety harness at a tenth of its length: holdfast and the careful reference face every fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import engines, faults
from bench.judge import BAD

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
HONEST = {"recovered", "told"}


def harness(engine: str, names: str, trials: int, folder: Path) -> list[dict[str, Any]]:
    """What the harness' process for one engine says, line by line."""
    done = subprocess.run(
        [
            sys.executable, "-m", "bench.safety", "--worker", "--engines", engine, "--faults", names,
            "--trials", str(trials), "--size-mb", "2", "--folder", str(folder),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("names", "trials"),
    [
        ("kill,kill_all,power_ext4,full_disk", 1),
        ("flip,truncate,audit,power_model", 4),
        ("prune", 2),
    ],
)
def test_holdfast_loses_nothing(names: str, trials: int, tmp_path: Path) -> None:
    for line in harness("holdfast_alone", names, trials, tmp_path):
        if line["fault"] == "audit" and "undurable_bytes" in line:
            assert (line["undurable_bytes"], line["hazards"]) == (0, [])
            assert line["undurable_names"] <= 1, "only the hint at the newest commit is written behind it"
        else:
            assert "spared" in line or line["verdict"] in HONEST, line


def test_the_reference_survives_power_loss_and_kills(tmp_path: Path) -> None:
    found = harness("reference", "kill_all,power_model", 3, tmp_path)

    assert {line.get("verdict", "recovered") for line in found} == {"recovered"}


def test_the_harness_finds_what_a_naive_engine_loses(tmp_path: Path) -> None:
    found = harness("torch_save", "power_model,flip", 6, tmp_path)

    assert {line["verdict"] for line in found if "verdict" in line} & {verdict.value for verdict in BAD}


def test_every_engine_and_fault_is_described() -> None:
    for engine in engines.every().values():
        assert engine.title and engine.documented and engine.packages
    for fault in faults.every().values():
        assert fault.title
