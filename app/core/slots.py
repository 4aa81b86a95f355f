"""Slots: how much may happen at once, who waits for a turn, and for how long."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from app.errors import Overloaded


@dataclass(slots=True)
class Samples:
    """The last 2,048 durations of one kind, in seconds; older ones count in `count` only."""

    count: int = 0
    recent: deque[float] = field(default_factory=lambda: deque[float](maxlen=2048))

    def add(self, seconds: float) -> None:
        """Keep one duration."""
        self.count += 1
        self.recent.append(seconds)

    def milliseconds(self) -> dict[str, float]:
        """Count, mean, percentiles and maximum, as the performance routes show them."""
        ordered = sorted(self.recent) or [0.0]
        last = len(ordered) - 1
        figures = {"mean": sum(ordered) / len(ordered), "max": ordered[-1]}
        figures |= {f"p{share}": ordered[round(last * share / 100)] for share in (50, 95, 99)}
        return {"count": self.count} | {name: round(value * 1000, 3) for name, value in figures.items()}


OnWait = Callable[[str, float, bool], None]
"""Told the name of a bound, the seconds that a run waited there, and whether it was refused."""


class Slots:
    """At most `limit` holders; further ones wait in order, at most `queue_length` of them, `wait_s` seconds each.

    Beyond that `take` raises `Overloaded`. A waiter who is cancelled leaves the queue, and gives a slot on that was
    handed over in the same moment.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        *,
        queue_length: int,
        wait_s: float,
        setting: str,
        on_wait: OnWait | None = None,
    ) -> None:
        self.name = name
        self.limit = limit
        self.setting = setting
        self._on_wait = on_wait
        self.in_use = 0
        self.refused = 0
        self.waited = Samples()
        self._queue_length = queue_length
        self._wait_s = wait_s
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Hold a slot until `give_back`."""
        if self.in_use < self.limit and not self._waiting:
            self.in_use += 1
            return
        if len(self._waiting) >= self._queue_length:
            self._count(0.0, refused=True)
            self._refuse()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        began = perf_counter()
        refused = False
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give_back()
            else:
                turn.cancel()
                self._waiting = deque(waiter for waiter in self._waiting if waiter is not turn)
            if isinstance(error, TimeoutError):
                refused = True
                self._refuse()
            raise
        finally:
            self.waited.add(waited_s := perf_counter() - began)
            self._count(waited_s, refused=refused)

    def give_back(self) -> None:
        """End a hold; the first in the queue gets the slot."""
        while self._waiting and self.in_use <= self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.in_use -= 1

    def _count(self, waited_s: float, *, refused: bool) -> None:
        if self._on_wait is not None:
            self._on_wait(self.name, waited_s, refused)

    def _refuse(self) -> None:
        self.refused += 1
        raise Overloaded(
            f"{self.name} is busy: {self.limit} at once, and too many wait", retry_after_s=max(1.0, self._wait_s)
        ) from None
