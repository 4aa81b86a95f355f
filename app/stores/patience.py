"""Deadlines that a busy process does not run into: they measure the other side, and not our own queue."""

import asyncio
from types import TracebackType

_STEPS = 5
_EXCUSED = 10


class patience:  # noqa: N801 - read like `asyncio.timeout`, which it stands in for
    """`asyncio.timeout(seconds)` for an event loop that may be late.

    A loop that is late notices the deadline before the answer that has long been there, so in a burst a healthy
    store would seem away. Here the time is measured in five steps, each of which begins when the one before was
    noticed, and ten that were noticed late do not count. Where the loop is not late it takes `seconds`; where it
    is late all the time, three times as long and what it was late.
    """

    __slots__ = ("_due", "_excused", "_handle", "_left", "_loop", "_step_s", "_timeout")

    def __init__(self, seconds: float) -> None:
        self._step_s = seconds / _STEPS
        self._left = _STEPS
        self._excused = _EXCUSED
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._begin_step()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._handle.cancel()
        return await self._timeout.__aexit__(kind, error, trace)

    def _begin_step(self) -> None:
        self._due = self._loop.time() + self._step_s
        self._handle = self._loop.call_at(self._due, self._end_step)

    def _end_step(self) -> None:
        if self._excused and self._loop.time() - self._due > self._step_s / 2:
            self._excused -= 1
        else:
            self._left -= 1
        if self._left:
            self._begin_step()
        else:
            self._timeout.reschedule(self._loop.time())
