"""Whose turn it is to have devices."""

from __future__ import annotations

import pytest

from holdfast.turn import Book, Device, Waiting, turn
from holdfast.units import Accelerators


def device(index: int, name: str = "NVIDIA A100", unfit: str = "") -> Device:
    return Device(index=index, uuid=f"GPU-{index}", name=name, memory_bytes=1, used_bytes=0, unfit=unfit)


def waiting(run: str, count: int, since_s: float, kind: str = "") -> Waiting:
    return Waiting(dir=run, wants=Accelerators(count=count, kind=kind), since_s=since_s)


TWO = [device(0), device(1)]
A, B, C = waiting("a", 1, 1.0), waiting("b", 2, 2.0), waiting("c", 1, 3.0)


def test_who_is_alone_gets_the_first_devices() -> None:
    assert turn(B, Book(), TWO, {}) == ("GPU-0", "GPU-1")


def test_a_small_job_does_not_pass_a_large_one() -> None:
    book = Book(claims={"GPU-0": "a"}, waiting=(B, C))

    assert turn(B, book, TWO, {}) == ()
    assert turn(C, book, TWO, {}) == ()
    assert turn(C, book.given("b", ["GPU-1"]), [*TWO, device(2)], {}) == ("GPU-2",)


def test_what_the_earlier_cannot_use_is_given_away() -> None:
    devices = [device(0), device(1, "NVIDIA T4")]
    book = Book(claims={"GPU-0": "a"}, waiting=(waiting("b", 1, 2.0, "a100"), C))

    assert turn(C, book, devices, {}) == ("GPU-1",)


def test_who_can_never_be_served_holds_nobody_up() -> None:
    book = Book(waiting=(waiting("b", 3, 2.0), C))

    assert turn(C, book, TWO, {}) == ("GPU-0",)


@pytest.mark.parametrize("busy", [{"GPU-0": "bob, process 7"}, {}])
def test_a_device_on_which_others_compute_is_passed_over(busy: dict[str, str]) -> None:
    assert turn(C, Book(), TWO, busy) == (("GPU-1",) if busy else ("GPU-0",))


def test_a_divided_device_is_nobodys() -> None:
    assert turn(B, Book(), [device(0, unfit="divided"), device(1)], {}) == ()


def test_who_asks_again_gets_its_own() -> None:
    book = Book(claims={"GPU-1": "c"})

    assert turn(C, book, TWO, {}) == ("GPU-1",)


def test_a_run_is_in_the_line_once_and_leaves_it_with_what_it_gets() -> None:
    book = Book(claims={"GPU-1": "c"}).queued(C).queued(B).queued(C)

    assert (book.claims, book.waiting, book.ahead(C)) == ({}, (B, C), (B,))
    assert book.given("b", ["GPU-0", "GPU-1"]) == Book(claims={"GPU-0": "b", "GPU-1": "b"}, waiting=(C,))
    assert book.without("b").without("c") == Book()
