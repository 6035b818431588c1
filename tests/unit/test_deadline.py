"""Work with a deadline gives its result, ends, or is cancelled with whoever waits for it."""

from __future__ import annotations

import asyncio

import pytest

from holdfast.deadline import within


async def instead(work: list[str]) -> str:
    """Never ends by itself; says when it was cancelled."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        work.append("cancelled")
    return "never"


def test_what_comes_in_time_is_given() -> None:
    assert asyncio.run(within(asyncio.sleep(0, "result"), 5)) == "result"
    assert asyncio.run(within(asyncio.sleep(0, "result"), None)) == "result"


@pytest.mark.parametrize("together", [False, True])
def test_what_is_late_is_cancelled_before_it_is_told(together: bool) -> None:
    async def main(seen: list[str]) -> None:
        work = asyncio.gather(instead(seen), instead(seen)) if together else instead(seen)
        with pytest.raises(asyncio.TimeoutError):
            await within(work, 0.01)  # type: ignore[arg-type]
        assert seen == ["cancelled"] * (1 + together)

    asyncio.run(main([]))


def test_an_error_is_the_works_own() -> None:
    async def fail() -> None:
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        asyncio.run(within(fail(), 5))


def test_a_cancellation_is_never_kept_also_when_the_result_is_there() -> None:
    async def main(seen: list[str]) -> None:
        result = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(within(result, 5))
        await asyncio.sleep(0)
        result.set_result("result")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        working = asyncio.create_task(within(instead(seen), 5))
        await asyncio.sleep(0.01)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert seen == ["cancelled"]

    asyncio.run(main([]))
