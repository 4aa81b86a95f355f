"""One run for all who ask the same at once: what it says reaches everybody, and whoever leaves harms nobody."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Hashable
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from app.core.run import Answer, CacheState, RunEvent, TextDelta
from app.errors import Unavailable

Tell = Callable[[RunEvent], None]
"""What a run reports through while it goes on."""


class Flight:
    """A run under way: what it has said so far, and how it ends. It belongs to the table, not to a caller."""

    def __init__(
        self, run: "Callable[[Flight], Coroutine[Any, Any, Answer]]", abandoned: "Callable[[Flight], None]"
    ) -> None:
        self.waiting = 0
        self.state: CacheState | None = None
        """`MISS` once a model is asked, `HIT` where a shared tier had the answer; unknown before."""
        self._said: list[RunEvent] = []
        self._abandoned = abandoned
        self._news = asyncio.Event()
        self.task = asyncio.create_task(run(self), name="flight")
        self.task.add_done_callback(self._landed)

    @contextmanager
    def seat(self) -> Generator[None]:
        """A seat aboard for the length of the block; whoever leaves the last one before the run ends, ends it."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
            if not self.waiting and not self.task.done():
                # Nobody may join a run that is ending.
                self._abandoned(self)
                self.task.cancel()

    def said(self, *, after: int) -> list[RunEvent]:
        """What was said after the first `after` events."""
        return self._said[after:]

    def decide(self, state: CacheState) -> None:
        """Let everybody know where the answer will come from."""
        self.state = state
        self._wake()

    def tell(self, event: RunEvent) -> None:
        """Pass `event` on to everybody, those included who come later."""
        self._said.append(event)
        self._wake()

    async def answer(self) -> Answer:
        """The answer, however long it takes. Raises what the run raised; cancelling the wait leaves the run alone."""
        await asyncio.wait([self.task])  # unlike awaiting the task, this does not pass a cancellation on to it
        return self._result()

    async def decided(self) -> CacheState:
        """Where the answer comes from, as soon as that is known. Raises what the run raised before."""
        while self.state is None:
            if self.task.done():
                self._result()
                return "MISS"
            await self._news.wait()
        return self.state

    async def events(self) -> AsyncGenerator[RunEvent]:
        """All that was said and is still being said, then the answer; texts that are there at once come as one."""
        at = 0
        while True:
            if at < len(self._said):
                fresh = self._said[at:]
                at = len(self._said)
                if len(fresh) == 1:
                    yield fresh[0]
                else:
                    for event in _joined(fresh):
                        yield event
            elif self.task.done():
                yield self._result()
                return
            else:
                await self._news.wait()

    def _result(self) -> Answer:
        if self.task.cancelled():
            raise Unavailable("the server is shutting down")
        return self.task.result()

    def _wake(self) -> None:
        # Set and cleared at once: everybody who waits now wakes up, and nobody else.
        self._news.set()
        self._news.clear()

    def _landed(self, task: asyncio.Task[Answer]) -> None:
        # A failure is marked as seen: where everybody has left, nobody else looks. The error of a cancelled task leaves
        # it with this; its frames know the flight, which would keep 10 KB alive until Python looks for such circles.
        with suppress(asyncio.CancelledError):
            task.exception()
        self._wake()


class Flights:
    """The runs under way by what they answer. The table owns them; the last one to leave a run cancels it."""

    def __init__(self) -> None:
        self._by_place: dict[Hashable, Flight] = {}
        self._tasks: set[asyncio.Task[Answer]] = set()

    @property
    def waiting(self) -> int:
        """How many callers wait for a run right now, those included for whom it was begun."""
        return sum(flight.waiting for flight in self._by_place.values())

    @contextmanager
    def aboard(
        self, place: Hashable, run: Callable[[Flight], Coroutine[Any, Any, Answer]]
    ) -> Generator[tuple[Flight, bool]]:
        """The run at `place`, begun if there is none, and whether it was there before; for the length of the block."""
        flight = self._by_place.get(place)
        # One that has just ended is in the table until the loop comes round; who took it for a run under way, and
        # asked again because it failed, would ask for ever.
        joined = flight is not None and not flight.task.done()
        if flight is None or not joined:
            flight = self._by_place[place] = self._take_off(place, run)
        with flight.seat():
            yield flight, joined

    async def aclose(self) -> None:
        """End every run that is still under way."""
        ending = list(self._tasks)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def _take_off(self, place: Hashable, run: Callable[[Flight], Coroutine[Any, Any, Answer]]) -> Flight:
        flight = Flight(run, partial(self._forget, place))
        self._tasks.add(flight.task)

        def land(task: asyncio.Task[Answer]) -> None:
            self._tasks.discard(task)
            self._forget(place, flight)

        flight.task.add_done_callback(land)
        return flight

    def _forget(self, place: Hashable, flight: Flight) -> None:
        if self._by_place.get(place) is flight:
            del self._by_place[place]


def _joined(events: list[RunEvent]) -> Generator[RunEvent]:
    texts: list[str] = []
    for event in events:
        if isinstance(event, TextDelta):
            texts.append(event.text)
            continue
        if texts:
            yield TextDelta("".join(texts))
            texts.clear()
        yield event
    if texts:
        yield TextDelta("".join(texts))
