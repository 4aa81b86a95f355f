"""Work that comes round, which one of all processes has to do and it does not matter which."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from uuid import uuid4

from app.errors import MnemosineError

_log = logging.getLogger(__name__)

Claim = Callable[..., Awaitable[bool]]
"""`SharedStore.claim`."""


class Chore:
    """Something that is done about every `every_s` seconds by one of all processes that share a store.

    That one holds the lease of this name. It renews it in each round until after the next, so that the chore stays
    with it; when it has gone, another takes over. A round that fails is made up for by the next.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[object]],
        *,
        every_s: float,
        claim: Claim,
        late_s: float = 15.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`late_s` is how much later than it should a process may come and still find the chore its own."""
        self._name = name
        self._work = work
        self._every_s = every_s
        self._late_s = late_s
        self._claim = claim
        self._jitter = jitter
        self._holder = uuid4().hex
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with the first round after one interval; `aclose()` ends it."""
        self._task = asyncio.create_task(self._do_for_ever(), name=self._name)

    async def aclose(self) -> None:
        """Stop, also in the middle of a round."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _do_for_ever(self) -> None:
        ttl_s = 2 * self._every_s + self._late_s
        while True:
            await asyncio.sleep(self._every_s * (0.5 + self._jitter()))
            try:
                if await self._claim(self._name.encode(), self._holder, ttl_s=ttl_s):
                    await self._work()
            except MnemosineError as error:
                _log.warning("%s: not now: %s", self._name, error.detail)
