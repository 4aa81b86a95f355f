"""Runs that several callers share: the moments between their ends and what the table knows of them."""

import asyncio
import gc
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import pytest

from app.core.flights import Flight, Flights
from app.errors import LimitExceeded


async def test_a_run_that_has_just_failed_is_not_joined() -> None:
    """It stays in the table for one turn of the loop, and whoever asks again because of its failure would meet it."""
    flights = Flights()
    seen: list[bool] = []

    async def refused(_: Flight) -> Any:
        # Called after the run has ended, and before anything that waits for its end.
        asyncio.get_running_loop().call_soon(look)
        raise LimitExceeded("used up", retry_after_s=1.0)

    async def unasked(_: Flight) -> Any:
        pytest.fail("it is left before it begins")

    def look() -> None:
        assert first.task.done()
        with flights.aboard("place", unasked) as (flight, joined):
            seen.append(joined or flight is first)

    with flights.aboard("place", refused) as (first, _), pytest.raises(LimitExceeded):
        await first.answer()
    assert seen == [False]
    await flights.aclose()


@contextmanager
def no_search_for_rubbish() -> Generator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_a_run_that_everybody_has_left_is_freed_at_once() -> None:
    """Streams live long; as rubbish they would be looked for late, and a thousand that are cut weigh 10 MB."""
    flights = Flights()

    async def endless(flight: Flight) -> Any:
        flight.decide("MISS")
        await asyncio.Event().wait()

    with no_search_for_rubbish():
        with flights.aboard("place", endless) as (flight, _):
            await flight.decided()
            left, task = ref(flight), ref(flight.task)
            del flight
        await asyncio.sleep(0.01)
        assert left() is None
        assert task() is None
    await flights.aclose()
