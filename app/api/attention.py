"""Whether the client still listens while its answer is made."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

T = TypeVar("T")

CLIENT_LEFT = 499
"""Counted where the client went away before the response began; nobody receives it."""

_LOOK_AFTER_S = 0.25
"""Most answers from memory are there before, and need nobody who watches."""


async def attended(request: Request, work: Awaitable[T]) -> T | Response:
    """What `work` gives; it is cancelled if the client goes away first, and the response then reaches nobody."""
    task = asyncio.current_task()
    assert task is not None
    left = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch(), name="client-watch")

    timer = asyncio.get_running_loop().call_later(_LOOK_AFTER_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if not left or task.uncancel() > 0:
            raise
        return Response(status_code=CLIENT_LEFT)
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
