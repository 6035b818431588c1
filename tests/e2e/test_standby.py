"""Machines that stand by for a run: the one that is silent is replaced by one of them, and by no second one."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.runs import RunDir
from tests.e2e.box import Box
from tests.labs import servers
from tests.labs.servers import BUCKET, Server
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(180)]

TINY = Path(__file__).parent / "scripts" / "tiny.py"
Age = Callable[[str, float], int]


@pytest.fixture
def store() -> Iterator[tuple[Server, Age]]:
    """An S3 server whose objects can be made older."""
    with servers.timeless() as made:
        yield made


@pytest.fixture
def others(tmp_path: Path) -> Iterator[tuple[Box, Box]]:
    """Two machines that have nothing."""
    made = [Box(tmp_path / name) for name in ("one", "two")]
    for box in made:
        box.root.mkdir()
    yield made[0], made[1]
    for box in made:
        box.close()
        shutil.rmtree(box.short, ignore_errors=True)


def begin(box: Box, url: str, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """Order a machine to stand by for the run `digits`."""
    told = {"url": url, "failover_s": 90.0, "env": environ, "secret_names": [], "accelerators": ""}
    child = subprocess.Popen(
        box.argv("node", "standby", "begin", "digits"), cwd=box.work, env={**box.env, **environ},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(json.dumps(told).encode())
    child.stdin.close()
    return child


def answer(child: subprocess.Popen[bytes]) -> dict[str, object]:
    assert child.stdout is not None
    with child.stdout as out:
        found: dict[str, object] = json.loads(out.read())
    assert child.wait(30) == 0
    return found


def is_mirrored(run: RunDir) -> bool:
    """Whether a checkpoint of it is on the mirror."""
    return run.archiver_log.exists() and b'"mirrored"' in run.archiver_log.read_bytes()


def standing(box: Box) -> str:
    """What the one that stands by found at its last look; empty where none does."""
    path = box.home / "standbys" / "digits" / "state.json"
    return str(json.loads(path.read_text())["state"]) if path.exists() else ""


def test_of_two_that_stand_by_one_goes_on_and_the_silent_one_yields_when_it_is_back(
    box: Box, others: tuple[Box, Box], store: tuple[Server, Age]
) -> None:
    server, age = store
    url, environ = f"s3://{BUCKET}/{uuid.uuid4()}", server.environ(home=box.root)
    shutil.copy(TINY, box.work / "train.py")
    mirror = f"checkpoint: {{every: [5 steps], mirror: '{url}'}}"
    box.write("holdfast.yaml", f"name: digits\nrun: exec python train.py\nresources: {{failover: 90s}}\n{mirror}\n")
    run = box.start(STEP_S="0.2", SLOW_FROM="15", **environ)
    until(lambda: is_mirrored(run), 60, what=lambda: box.tail(run))
    box.close()
    assert age(".alive", 100) == 1

    asked = [begin(each, url, environ) for each in others]
    assert [answer(child)["standing"] for child in asked] == [True, True]

    runs = [RunDir(each.home / "runs" / "digits") for each in others]
    until(lambda: any((each / "plan.json").exists() for each in (one.root for one in runs)), 60)
    winner = next(n for n, one in enumerate(runs) if one.plan.exists())
    won, lost = others[winner], others[1 - winner]
    assert won.wait_for(runs[winner], "succeeded", "failed")["state"] == "succeeded", won.tail(runs[winner])
    assert not runs[1 - winner].plan.exists()
    assert standing(lost) in ("watching", "at rest")
    assert not (won.home / "standbys" / "digits").exists()

    assert box.holdfast("resume", "digits", "-d", **environ).returncode == 0
    status = box.wait_for(run, "stopped", "failed", "succeeded")
    assert (status["state"], status["exit_code"]) == ("stopped", 11)
    assert "another machine has taken term" in status["reason"]
