"""The roll call of workers: who lives says so in the database, and the runs of those who died are ended."""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic

from app.db.async_session import Database
from app.db.runs import mark_interrupted
from app.db.workers import sign_in, strike_off
from app.errors import DatabaseUnavailable

_log = logging.getLogger(__name__)

_LEAVING_S = 2.0


class RollCall:
    """One worker's part in it.

    Every `every_s` seconds the worker signs in; whoever has not for `silent_s` seconds is dead, and a run that is
    "running" without a living worker ends as interrupted, by whichever worker comes next. This holds for all
    replicas on one database, and for a server that was killed whole: its successor, or another replica, does it.
    Those of whose death the machine knows (`bury`) are not waited for.

    A worker that was only silent signs in again, and its runs end as they end. While the database is away nobody can
    sign in, so a worker that was silent itself strikes nobody off: the others get as long to come back as it took.
    """

    def __init__(
        self,
        database: Database,
        *,
        worker: str,
        every_s: float = 5.0,
        silent_s: float = 15.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._database = database
        self._worker = worker
        self._every_s = every_s
        self._silent_s = silent_s
        self._clock = clock
        self._signed_in_at = -math.inf
        self._dead: set[str] = set()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sign in; `aclose()` ends it."""
        self._task = asyncio.create_task(self._call_for_ever(), name="roll-call")

    def bury(self, workers: Iterable[str]) -> None:
        """Strike these off at once: they are dead."""
        self._dead.update(workers)
        if self._dead:
            self._news.set()

    async def call(self) -> int:
        """Sign in, strike off the dead, and end their runs; gives how many those were. Raises `DatabaseUnavailable`."""
        dead = set(self._dead)
        was_silent = self._clock() - self._signed_in_at >= self._silent_s
        # Apart from what follows: two that hold their own row and want to strike off each other would wait for ever.
        async with self._database.write() as session:
            await sign_in(session, self._worker)
        self._signed_in_at = self._clock()
        async with self._database.write() as session:
            await strike_off(session, dead, silent_s=None if was_silent else self._silent_s)
            ended = await mark_interrupted(session)
        self._dead -= dead
        if ended:
            _log.warning("%d runs were interrupted by the death of their worker", ended)
        return ended

    async def aclose(self) -> None:
        """Sign out. What this worker began has ended by then, or counts as interrupted."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(_LEAVING_S), self._database.write() as session:
                await strike_off(session, [self._worker], silent_s=None)
                await mark_interrupted(session)
        except (DatabaseUnavailable, TimeoutError):
            pass  # the others notice the silence
        except Exception:
            # What else has to be closed does not wait for a database that somebody emptied.
            _log.exception("this worker could not sign out; the others will notice its silence")

    async def _call_for_ever(self) -> None:
        while True:
            self._news.clear()
            try:
                await self.call()
            except DatabaseUnavailable:
                await asyncio.sleep(self._every_s)
                continue
            except Exception:
                # To end here would be to be taken for dead while prompts are answered.
                _log.exception("the roll call failed, and will be tried again in %g s", self._every_s)
                await asyncio.sleep(self._every_s)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._news.wait()
