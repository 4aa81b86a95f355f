"""The story of one request, told by the rooms that it passes, and the last stories of this worker."""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter, time
from typing import Any, Self

from pydantic_core import from_json, to_json

from app.core.run import Answer, Attempt, CacheState

Step = tuple[str, float, float]
"""What was done, when it began on the `perf_counter` clock, and how many seconds it took."""

Answered = tuple[str, str, CacheState, tuple[str, ...], float, float | None]
"""The run's id, the model that answered, how the cache took part, what differed, age and time to live in seconds."""

_WATCHING = " /api/v1/performance/"
_SLOW_HIT_S = 0.001
"""An answer from memory that took longer keeps its story, however many there are. It is the first bound of the buckets
of which each has an example."""
_SLOWEST = 20
_SLOWEST_FOR_S = 3600.0
_MAX_STEPS = 40


@dataclass(slots=True)
class Story:
    """What one request met, in order. Rooms find it in `current`; each tells its own part."""

    caller_id: str | None = None
    error: str | None = None
    """The code of the problem that it ended with."""
    steps: list[Step] = field(default_factory=list[Step])
    agent: str | None = None
    model: str | None = None
    answered: Answered | None = None
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    """The requests to models that were made on its behalf, also where none succeeded."""

    @classmethod
    def of_hit(cls, hit: "Hit") -> Self:
        """The story of an answer that came from memory before anybody began to tell one."""
        caller_id, answer, age_s, ttl_s = hit
        told = (answer.id, answer.model, answer.cache, answer.differs, age_s, ttl_s)
        return cls(caller_id, agent=answer.agent, model=answer.model, answered=told)

    def end(self, answer: Answer) -> None:
        """Tell where the answer came from. What it says is forgotten here."""
        self.answered = (answer.id, answer.model, answer.cache, answer.differs, answer.age_s, answer.ttl_s)

    def step(self, name: str, began: float) -> None:
        """Tell of something that began at `began` and is over now."""
        if len(self.steps) < _MAX_STEPS:
            self.steps.append((name, began, perf_counter() - began))


Hit = tuple[str, Answer, float, float]
"""What there is to tell of a known question: its caller's id, the answer, and its age and time to live in seconds."""

Ended = tuple[str | None, float, str, int, float, float, float | None, Story | Hit | None]
"""A request that is over: its id, when it was answered (seconds since 1970), its route and status, when it began on the
`perf_counter` clock, its seconds, those of the model (`None` where nobody knows), and its story, where that is worth a
place. No class: one is made for every request, most are soon forgotten, and a class would cost ten times as much."""

current: ContextVar[Story | None] = ContextVar("story", default=None)
"""The story of the request that this task serves; a run that others share is told in that of who began it."""


def tell(name: str, began: float) -> None:
    """Add a step to the present story, where there is one."""
    story = current.get()
    if story is not None:
        story.step(name, began)


@dataclass(frozen=True, slots=True)
class Told:
    """A finished story with its frame."""

    request_id: str
    at: float
    """When it was answered, in seconds since 1970."""
    route: str
    status: int
    started: float
    seconds: float
    story: Story

    @classmethod
    def of(cls, ended: Ended) -> Self:
        """The same with names."""
        request_id, at, route, status, started, seconds, _, story = ended
        assert request_id is not None
        assert story is not None
        whole = story if isinstance(story, Story) else Story.of_hit(story)
        return cls(request_id, at, route, status, started, seconds, whole)

    @property
    def is_remarkable(self) -> bool:
        """Whether it failed, was slow, or asked a model."""
        return is_remarkable(self.status, self.seconds, self.story)

    def plain(self, pid: int) -> dict[str, Any]:
        """The story in the words of the performance API, who asked included; small enough to be kept by hundreds."""
        story = self.story
        told: dict[str, Any] = {
            "request_id": self.request_id,
            "at": self.at,
            "route": self.route,
            "status": self.status,
            "duration_ms": round(self.seconds * 1000, 3),
            "worker": pid,
            "caller_id": story.caller_id,
            "error": story.error,
            "agent": story.agent,
            "model": story.model,
            "stages": [
                {
                    "name": name,
                    "start_ms": round((began - self.started) * 1000, 3),
                    "duration_ms": round(seconds * 1000, 3),
                }
                for name, began, seconds in sorted(story.steps, key=lambda step: step[1])
            ],
            "attempts": [
                {"model": one.model, "duration_ms": round(one.seconds * 1000, 3), "outcome": one.outcome}
                for one in story.attempts[:_MAX_STEPS]
            ],
        }
        if story.answered is not None:
            run_id, model, state, differs, age_s, ttl_s = story.answered
            told |= {"run_id": run_id, "answered_by": model}
            told["cache"] = {
                "state": state,
                "differs": list(differs),
                "age_seconds": round(age_s, 3),
                "ttl_seconds": None if ttl_s is None else round(ttl_s, 3),
            }
        return told


class Stories:
    """The last stories of this worker and the slowest of the last hour.

    Of remarkable requests the last `size` are kept, of all others the last `plain_size`: more of those would push
    out what is worth a look. Of answers from memory only as many have one as can be shown to other workers.
    """

    def __init__(self, *, size: int = 512, plain_size: int = 48, clock: Callable[[], float] = time) -> None:
        self._clock = clock
        self._recent: deque[Ended] = deque(maxlen=size)
        self._unshown: deque[Ended] = deque(maxlen=size)
        self._plain: deque[Ended] = deque(maxlen=plain_size)
        self._plain_unshown: deque[Ended] = deque(maxlen=plain_size)
        self._slowest: list[tuple[float, float, int, Ended]] = []
        self._numbers = count()
        """Of two that took as long at the same moment, one has to come first."""
        self.hit_bar_s = -1.0
        """An answer from memory that took no longer need not be told of: there is no room, and it was quick."""

    def add(self, requests: Iterable[Ended]) -> None:
        """Keep the stories that these `requests` have, in the order in which they ended."""
        plain: list[Ended] = []
        bar_s = self._bar_s()
        for ended in requests:
            _, _, _, status, _, seconds, _, story = ended
            if story is None:
                continue
            if is_remarkable(status, seconds, story):
                self._recent.append(ended)
                self._unshown.append(ended)
            else:
                plain.append(ended)
            if seconds > bar_s:
                self._add_slow(ended)
                bar_s = self._bar_s()
        self._plain.extend(plain)
        self._plain_unshown.extend(plain)
        if len(self._plain_unshown) == self._plain_unshown.maxlen:
            self.hit_bar_s = min(bar_s, _SLOW_HIT_S)

    def find(self, request_id: str) -> Told | None:
        """The last story of this request, if it is still known here."""
        known = [ended for ended in (*self._recent, *self._plain) if ended[0] == request_id]
        return Told.of(max(known, key=_answered_at)) if known else None

    def slowest(self) -> list[Told]:
        """The slowest of the last hour, the slowest first."""
        since = self._clock() - _SLOWEST_FOR_S
        if any(at < since for _, at, _, _ in self._slowest):
            self._slowest = [entry for entry in self._slowest if entry[1] >= since]
            heapq.heapify(self._slowest)
        return [Told.of(ended) for _, _, _, ended in sorted(self._slowest, key=lambda entry: -entry[0])]

    def take_unshown(self) -> list[Told]:
        """What came since this was asked last, to be shown to other workers."""
        fresh = sorted((*self._unshown, *self._plain_unshown), key=_answered_at)
        self._unshown.clear()
        self._plain_unshown.clear()
        self.hit_bar_s = -1.0
        return [Told.of(ended) for ended in fresh]

    def _bar_s(self) -> float:
        """What a request must have taken longer than, to be one of the slowest."""
        return self._slowest[0][0] if len(self._slowest) == _SLOWEST else -1.0

    def _add_slow(self, ended: Ended) -> None:
        _, at, route, _, _, seconds, _, _ = ended
        if _WATCHING in route:
            return  # Who looks at numbers is not what they are about.
        heapq.heappush(self._slowest, (seconds, at, next(self._numbers), ended))
        if len(self._slowest) > _SLOWEST:
            heapq.heappop(self._slowest)


def is_remarkable(status: int, seconds: float, story: Story | Hit) -> bool:
    """Whether a request failed, was slow, or asked a model."""
    return status >= 500 or seconds > 1 or (isinstance(story, Story) and bool(story.attempts))


def _answered_at(ended: Ended) -> float:
    return ended[1]


def written(told: Told, pid: int) -> bytes:
    """A story as bytes for other workers; `read` gives it back as `plain`."""
    return to_json(told.plain(pid))


def read(data: bytes) -> dict[str, Any]:
    """The story that another worker has `written`."""
    return from_json(data)
