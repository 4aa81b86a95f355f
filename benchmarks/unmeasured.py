"""The application with nothing of it measured, to see what measuring costs: `uvicorn benchmarks.unmeasured:app`."""

import asyncio
from typing import Any

import app.core.totals
import app.main
import app.runtime


async def _rest(*_: object) -> None:
    await asyncio.sleep(0)


def _nothing(*_: object, **__: object) -> float:
    return 0.0


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    app.core.totals.Totals.report = _rest
    app.runtime.watch_loop = _rest
    door = app.main.app
    door.metrics.record_request = _nothing
    door.metrics.stories.add = _nothing
    return door
