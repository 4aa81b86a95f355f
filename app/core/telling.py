"""An answer on its way to one caller, from wherever it comes: whole, or as it is said."""

from collections.abc import AsyncGenerator, Callable

from app.core.flights import Flight
from app.core.run import Answer, CacheState, RunEvent, TextDelta


class Telling:
    """The answer to one question while it comes: from memory, from a run that others share, or from one's own."""

    def __init__(
        self,
        state: CacheState,
        *,
        flight: Flight | None = None,
        finish: Callable[[Answer], Answer] | None = None,
        answer: Answer | None = None,
    ) -> None:
        self.state: CacheState = state
        self._flight = flight
        self._finish = finish
        self._answer = answer

    @property
    def kept(self) -> Answer | None:
        """The answer, where it comes from memory."""
        return self._answer

    async def answer(self) -> Answer:
        """The whole answer."""
        if self._answer is not None:
            return self._answer
        assert self._flight is not None
        assert self._finish is not None
        return self._finish(await self._flight.answer())

    async def events(self) -> AsyncGenerator[RunEvent]:
        """What is said, as it is said, and the answer at the end."""
        if self._answer is not None:
            if isinstance(self._answer.output, str) and self._answer.output:
                yield TextDelta(self._answer.output)
            yield self._answer
            return
        assert self._flight is not None
        assert self._finish is not None
        spoken = False
        async for event in self._flight.events():
            if isinstance(event, Answer):
                answer = self._finish(event)
                if not spoken and isinstance(answer.output, str) and answer.output:
                    # The run was begun by somebody who did not want a stream, or in another process.
                    yield TextDelta(answer.output)
                yield answer
            else:
                spoken = spoken or isinstance(event, TextDelta)
                yield event
