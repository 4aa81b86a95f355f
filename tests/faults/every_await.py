"""Disturb one request at its n-th suspension: it is cancelled, or the wait raises, at once or as its result arrives."""

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, Literal, get_args

Disturbance = Literal["cancelled", "cancelled late", "failed", "failed late"]
"""Cancelled while it waits, or as what it waited for arrives, which is then lost; the same with an error raised."""

DISTURBANCES: tuple[Disturbance, ...] = get_args(Disturbance)


_UNDISTURBED = {"budgets", "database-end"}
"""Tasks that a request may begin and that nobody cancels: the writer for all budgets, and the end of a transaction."""


class Fault(Exception):
    """What a wait raises that was to fail."""


@dataclass(slots=True)
class Script:
    """Which suspension is disturbed, of a request and of all tasks that it begins; `place` says where that was."""

    nth: int
    disturbance: Disturbance
    suspensions: int = 0
    place: str = ""


_script: ContextVar[Script | None] = ContextVar("script", default=None)


@contextmanager
def disturbing() -> Generator[None]:
    """Within the block, tasks that were begun under a script (`under`) follow it."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()

    def make(loop: asyncio.AbstractEventLoop, work: Any, *, context: Context | None = None) -> asyncio.Task[Any]:
        script = _script.get() if context is None else context.get(_script)
        return asyncio.Task(work if script is None else _Disturbed(work, script), loop=loop, context=context)

    loop.set_task_factory(make)
    try:
        yield
    finally:
        loop.set_task_factory(before)


def under(script: Script, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """`work` as a task that follows `script`, with all the tasks that it begins."""
    context = copy_context()
    context.run(_script.set, script)
    return asyncio.get_running_loop().create_task(work, context=context)


class _Disturbed(Coroutine[Any, Any, Any]):
    """A task's coroutine, counted at every suspension."""

    def __init__(self, work: Coroutine[Any, Any, Any], script: Script) -> None:
        self._work = work
        self._script = script
        self._late: BaseException | None = None

    def send(self, value: Any, /) -> Any:
        if self._late is not None:
            late, self._late = self._late, None
            return self._suspended(self._work.throw(late))
        return self._suspended(self._work.send(value))

    def throw(self, *error: Any) -> Any:
        self._late = None
        return self._suspended(self._work.throw(*error))

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()

    def _suspended(self, waits_for: Any) -> Any:
        script = self._script
        task = asyncio.current_task()
        assert task is not None
        if task.get_name() in _UNDISTURBED:
            return waits_for
        script.suspensions += 1
        if script.suspensions != script.nth:
            return waits_for
        script.place = _place_of(self._work)
        match script.disturbance:
            case "cancelled":
                task.cancel()
            case "cancelled late":
                self._late = asyncio.CancelledError()
            case "failed":
                if waits_for is not None:
                    waits_for._asyncio_future_blocking = False
                    waits_for.add_done_callback(_look_at)
                return self._suspended(self._work.throw(Fault(f"at {script.place}")))
            case "failed late":
                self._late = Fault(f"at {script.place}")
        return waits_for


def _look_at(abandoned: "asyncio.Future[Any]") -> None:
    """Keep asyncio from complaining that nobody asked for its error: the one who would have was made to fail."""
    if not abandoned.cancelled():
        abandoned.exception()


def _place_of(work: Any) -> str:
    """File, line and name of the innermost function of ours that waits."""
    place = ""
    while work is not None:
        frame = getattr(work, "cr_frame", None) or getattr(work, "ag_frame", None) or getattr(work, "gi_frame", None)
        if frame is not None:
            here = f"{frame.f_code.co_filename.rpartition('/app/')[2]}:{frame.f_lineno} {frame.f_code.co_qualname}"
            if "/app/" in frame.f_code.co_filename or not place:
                place = here
        work = getattr(work, "cr_await", None) or getattr(work, "ag_await", None) or getattr(work, "gi_yieldfrom", None)
    return place
