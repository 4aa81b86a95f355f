"""Deadlines in a busy process: what has long been there is heard, and what never comes is not waited for."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Any

import pytest

from app.stores.patience import patience


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        yield one, other


def spin(seconds: float) -> None:
    """What a burst of requests does to the event loop."""
    until = monotonic() + seconds
    while monotonic() < until:
        pass


async def hear(end: socket.socket, deadline: AbstractAsyncContextManager[Any]) -> bytes:
    async with deadline:
        return await asyncio.get_running_loop().sock_recv(end, 10)


@pytest.mark.parametrize(("deadline", "heard"), [(asyncio.timeout, False), (patience, True)])
async def test_an_answer_that_is_there_is_heard_however_late_the_loop_is(
    ends: tuple[socket.socket, socket.socket],
    deadline: Callable[[float], AbstractAsyncContextManager[Any]],
    heard: bool,
) -> None:
    asking = asyncio.create_task(hear(ends[0], deadline(0.1)))
    await asyncio.sleep(0.01)
    ends[1].send(b"answer")
    spin(0.3)
    told = await asyncio.gather(asking, return_exceptions=True)
    # The first line is the control: `asyncio.timeout` gives up with the answer at hand.
    assert (told == [b"answer"]) is heard


async def test_what_does_not_come_is_given_up_in_time(ends: tuple[socket.socket, socket.socket]) -> None:
    began = monotonic()
    with pytest.raises(TimeoutError):
        await hear(ends[0], patience(0.2))
    assert 0.19 <= monotonic() - began < 5


async def test_a_cancellation_passes(ends: tuple[socket.socket, socket.socket]) -> None:
    asking = asyncio.create_task(hear(ends[0], patience(60)))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
