"""One thread, in order, and no error is lost or ends it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from holdfast.node.worker import Worker
from tests.waiting import until


def settled(worker: Worker) -> Callable[[], bool]:
    def collect() -> bool:
        worker.collect()
        return worker.outstanding == 0

    return collect


def test_jobs_run_in_order_and_results_come_back() -> None:
    worker, results = Worker("test", lambda _name, _error: None), list[Any]()
    for number in range(5):
        worker.submit(lambda number=number: number * 2, results.append)  # type: ignore[misc]
    until(settled(worker))

    assert results == [0, 2, 4, 6, 8]
    os.close(worker.wake)


def test_how_each_job_ended_is_told_and_the_next_one_runs() -> None:
    told, results = list[Any](), list[Any]()
    worker = Worker("test", lambda name, error: told.append((name, error and type(error))))
    worker.submit(lambda: 1 // 0, results.append, failed="none")
    worker.submit(lambda: 5, results.append)
    until(settled(worker))

    assert (told, results) == ([("test", ZeroDivisionError), ("test", None)], ["none", 5])
    os.close(worker.wake)
