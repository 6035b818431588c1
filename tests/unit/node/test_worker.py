"""One thread, in order, and no error is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from holdfast.node.worker import Worker
from tests.waiting import until


def settled(worker: Worker) -> Callable[[], bool]:
    def collect() -> bool:
        worker.collect()
        return worker.outstanding == 0

    return collect


def test_jobs_run_in_order_and_results_come_back() -> None:
    worker, results = Worker("test"), list[Any]()
    for number in range(5):
        worker.submit(lambda number=number: number * 2, results.append)  # type: ignore[misc]
    until(settled(worker))

    assert results == [0, 2, 4, 6, 8]
    os.close(worker.wake)


def test_what_a_job_raises_is_raised_where_it_is_collected() -> None:
    worker = Worker("test")
    worker.submit(lambda: 1 // 0, print)

    with pytest.raises(ZeroDivisionError):
        until(settled(worker))
    os.close(worker.wake)
