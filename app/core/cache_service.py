"""Answers remembered: one flight for equal questions, a bounded memory, and what both of them saved."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from time import perf_counter
from typing import Any

from pydantic_core import from_json, to_json

from app.core.cache_key import CacheKey
from app.core.run import Answer, CacheMode, Usage
from app.errors import Unavailable
from app.stores.board import Board
from app.stores.memory import MemoryStore

Run = Callable[[], Awaitable[Answer]]


@dataclass(slots=True)
class Saved:
    """What hits and joined flights did not spend."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    seconds: float = 0.0


@dataclass(slots=True)
class CacheCounts:
    """What happened so far in this worker; every number only grows."""

    hits: int = 0
    misses: int = 0
    coalesced: int = 0
    stores: int = 0
    cleanups: int = 0
    removed: int = 0
    last_cleanup_at: datetime | None = None
    last_cleanup_ms: float | None = None
    saved: dict[str, Saved] = field(default_factory=dict[str, Saved])
    """By agent."""


@dataclass(slots=True, eq=False)
class _Flight:
    task: asyncio.Task[Answer]
    waiting: int = 0


class CacheService:
    """Remembers answers in this process; `clear()` outdates what all workers of this machine remember.

    Equal questions that are asked at once share one run. The table owns that run: whoever leaves harms nobody, the
    last one to leave cancels it, and a failure reaches those who wait and is not kept. An entry, and a flight,
    belongs to the generation of the board in which it began; a clear begins the next one.
    """

    def __init__(
        self,
        store: MemoryStore,
        board: Board,
        *,
        enabled: bool,
        ttl_s: float,
        clean_up_every_s: float = 30.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.enabled = enabled
        self.ttl_s = ttl_s
        self.store = store
        self.counts = CacheCounts()
        self._board = board
        self._clean_up_every_s = clean_up_every_s
        self._jitter = jitter
        self._flights: dict[tuple[int, bytes], _Flight] = {}
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._cleaner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the periodic clean-up; `aclose()` ends it."""
        self._cleaner = asyncio.create_task(self._clean_for_ever(), name="cache-clean-up")

    async def aclose(self) -> None:
        """End the clean-up and every run that is still under way."""
        ending: list[asyncio.Task[Any]] = [*self._tasks]
        if self._cleaner is not None:
            ending.append(self._cleaner)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def get_or_run(self, key: CacheKey, run: Run, *, mode: CacheMode, ttl_s: float | None = None) -> Answer:
        """The answer kept under `key`, or that of a run under way, or that of `run`, which is then kept.

        The answer's `cache`, `age_s` and `ttl_s` say which. Only an answer that calls itself `storable` is kept.
        """
        if not self.enabled or mode == "off":
            return replace(await run(), cache="BYPASS")
        generation = self._board.generation("cache")
        if mode == "refresh":
            return self._keep(key, replace(await run(), cache="REFRESH"), generation, ttl_s)
        if (found := self._find(key, generation)) is not None:
            self.counts.hits += 1
            self._save(key.agent, found)
            return found
        place = (generation, key.digest)
        flight = self._flights.get(place)
        joined = flight is not None
        if flight is None:
            self.counts.misses += 1
            flight = self._flights[place] = self._take_off(place, key, run, ttl_s)
        answer = await self._wait(place, flight)
        if joined:
            self.counts.coalesced += 1
            self._save(key.agent, answer)
            return replace(answer, cache="COALESCED")
        return answer

    def clear(self) -> int:
        """Outdate every entry in every worker of this machine, at once; gives how many this worker held."""
        self._board.bump("cache")
        return self.store.clear()

    def clean_up(self) -> int:
        """Remove expired entries and count that; gives how many they were."""
        started = perf_counter()
        removed = self.store.remove_expired(generation=self._board.generation("cache"))
        self.counts.cleanups += 1
        self.counts.removed += removed
        self.counts.last_cleanup_at = datetime.now(UTC)
        self.counts.last_cleanup_ms = (perf_counter() - started) * 1000
        return removed

    @property
    def waiting(self) -> int:
        """How many callers wait for a run right now, those included for whom it was begun."""
        return sum(flight.waiting for flight in self._flights.values())

    def numbers(self) -> dict[str, Any]:
        """The cache of this worker in the contract's words."""
        counts, store = self.counts, self.store
        asked = counts.hits + counts.coalesced + counts.misses
        by_agent = list(counts.saved.values())
        return {
            "enabled": self.enabled,
            "backend": "memory",
            "entries": len(store),
            "bytes": store.bytes,
            "max_bytes": store.max_bytes,
            "ttl_seconds": self.ttl_s,
            "hits": counts.hits,
            "misses": counts.misses,
            "coalesced": counts.coalesced,
            "hit_ratio": (counts.hits + counts.coalesced) / asked if asked else 0.0,
            "stores": counts.stores,
            "evictions": store.evictions,
            "expirations": store.expirations,
            "cleanup": {
                "runs": counts.cleanups,
                "removed": counts.removed,
                "last_run_at": counts.last_cleanup_at,
                "last_duration_ms": counts.last_cleanup_ms,
            },
            "saved": {
                "requests": sum(saved.requests for saved in by_agent),
                "input_tokens": sum(saved.input_tokens for saved in by_agent),
                "output_tokens": sum(saved.output_tokens for saved in by_agent),
                "cost_usd": float(sum(saved.cost_usd for saved in by_agent)),
                "seconds": sum(saved.seconds for saved in by_agent),
            },
            "recommendations": [],
        }

    def _take_off(self, place: tuple[int, bytes], key: CacheKey, run: Run, ttl_s: float | None) -> _Flight:
        async def fly() -> Answer:
            return self._keep(key, replace(await run(), cache="MISS"), place[0], ttl_s)

        task = asyncio.create_task(fly(), name="cache-flight")
        flight = _Flight(task)
        self._tasks.add(task)

        def land(done: asyncio.Task[Answer]) -> None:
            self._tasks.discard(done)
            if self._flights.get(place) is flight:
                del self._flights[place]
            if not done.cancelled():
                done.exception()  # marked as seen: where everybody has left, nobody else looks

        task.add_done_callback(land)
        return flight

    async def _wait(self, place: tuple[int, bytes], flight: _Flight) -> Answer:
        flight.waiting += 1
        try:
            await asyncio.wait([flight.task])  # unlike awaiting the task, this does not pass a cancellation on to it
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                # Nobody may join a run that is ending.
                if self._flights.get(place) is flight:
                    del self._flights[place]
                flight.task.cancel()
        if flight.task.cancelled():
            raise Unavailable("the server is shutting down")
        return flight.task.result()

    def _find(self, key: CacheKey, generation: int) -> Answer | None:
        kept = self.store.get(key.digest, generation=generation)
        if kept is None:
            return None
        entry = from_json(kept.value)
        if entry["key"] != key.digest.hex() or entry["scope"] != key.scope:
            return None
        return _read(entry, age_s=self.store.age_s(kept), ttl_s=self.store.left_s(kept))

    def _keep(self, key: CacheKey, answer: Answer, generation: int, ttl_s: float | None) -> Answer:
        if not answer.storable:
            return answer
        # Up to a tenth less, so that what was stored together does not expire together.
        life_s = (ttl_s or self.ttl_s) * (1 - 0.1 * self._jitter())
        if not self.store.put(key.digest, _written(key, answer), ttl_s=life_s, generation=generation):
            return answer
        self.counts.stores += 1
        return replace(answer, ttl_s=life_s)

    def _save(self, agent: str, answer: Answer) -> None:
        saved = self.counts.saved.setdefault(agent, Saved())
        saved.requests += answer.usage.requests
        saved.input_tokens += answer.usage.input_tokens
        saved.output_tokens += answer.usage.output_tokens
        saved.cost_usd += answer.cost_usd or 0
        saved.seconds += answer.model_s

    async def _clean_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._clean_up_every_s)
            self.clean_up()


def _written(key: CacheKey, answer: Answer) -> bytes:
    return to_json(
        {
            "key": key.digest.hex(),
            "scope": key.scope,
            "id": answer.id,
            "output": answer.output,
            "agent": answer.agent,
            "model": answer.model,
            "usage": [answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.requests],
            "cost_usd": None if answer.cost_usd is None else str(answer.cost_usd),
            "model_s": answer.model_s,
        }
    )


def _read(entry: dict[str, Any], *, age_s: float, ttl_s: float) -> Answer:
    input_tokens, output_tokens, requests = entry["usage"]
    return Answer(
        id=entry["id"],
        output=entry["output"],
        agent=entry["agent"],
        model=entry["model"],
        usage=Usage(input_tokens, output_tokens, requests),
        cost_usd=None if entry["cost_usd"] is None else Decimal(entry["cost_usd"]),
        model_s=entry["model_s"],
        cache="HIT",
        storable=True,
        age_s=age_s,
        ttl_s=ttl_s,
    )
