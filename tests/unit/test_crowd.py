"""Who waits in threads for several things ends all of them by asking no more."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable

import pytest

from holdfast import crowd


def test_answers_come_in_order_and_an_error_as_it_is() -> None:
    second_is_done = threading.Event()

    def work(number: int) -> int:
        if number == 1:
            assert second_is_done.wait(30)
        second_is_done.set()
        return 10 // number

    found = crowd.each(work, [1, 2, 0], 3)

    assert [next(found), next(found)] == [10, 5]
    with pytest.raises(ZeroDivisionError):
        next(found)


def in_a_loop(begun: threading.Event) -> None:
    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    crowd.run(waits())


def at_a_descriptor(begun: threading.Event) -> None:
    woken, wake = os.pipe()
    begun.set()
    assert not crowd.readable(woken)
    os.close(woken)
    os.close(wake)


def for_somebody(begun: threading.Event) -> None:
    here, there = socket.socketpair()
    with here, there, crowd.ended_by(lambda: here.shutdown(socket.SHUT_RDWR)):
        begun.set()
        assert here.recv(1) == b""


@pytest.mark.parametrize("waits", [in_a_loop, at_a_descriptor, for_somebody])
def test_who_asks_for_no_more_ends_what_is_waited_for_and_what_would_be(
    waits: Callable[[threading.Event], None],
) -> None:
    begun, ended = threading.Event(), []

    def work(number: int) -> int:
        if number == 0:
            assert begun.wait(30)
            return 0
        try:
            waits(begun)
            waits(begun)
        finally:
            ended.append(number)
        return number

    found = crowd.each(work, [0, 1], 2)
    assert next(found) == 0
    found.close()  # returns when all have ended

    assert ended == [1]


def test_without_a_crowd_all_is_as_ever() -> None:
    woken, wake = os.pipe()
    os.write(wake, b"!")
    assert crowd.readable(woken)
    os.close(woken)
    os.close(wake)
    with crowd.ended_by(lambda: pytest.fail("nobody leaves")):
        assert crowd.run(asyncio.sleep(0, 7)) == 7
