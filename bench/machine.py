"""What a result was measured on, and where it is kept."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Processor, memory, kernel, versions, and how busy the machine was."""
    return {
        "cpu": _after("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _after("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "holdfast": _version("holdfast"),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def keep(name: str, result: dict[str, Any]) -> Path:
    """Write `bench/results/<name>.json`, with the date and the machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    path.write_text(json.dumps({"date": day, "machine": describe(), **result}, indent=1) + "\n")
    return path


def _after(path: str, label: str) -> str:
    for line in Path(path).read_text().splitlines():
        if line.startswith(label):
            return line.partition(":")[2].strip()
    return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
