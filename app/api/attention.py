"""Whether the client still listens while its answer is made."""

import asyncio
from collections.abc import Awaitable

from starlette.requests import Request
from starlette.responses import Response

CLIENT_LEFT = 499
"""Counted where the client went away before the response began; nobody receives it."""


async def attended(request: Request, work: Awaitable[Response]) -> Response:
    """The response of `work`, which is cancelled if the client goes away first."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch(), name="client-watch")
    try:
        return await work
    except asyncio.CancelledError:
        if not left or task.uncancel() > 0:
            raise
        return Response(status_code=CLIENT_LEFT)
    finally:
        watcher.cancel()
