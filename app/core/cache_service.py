"""Answers remembered: in this process, in a store that several share, and while they are still being made."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from app.core import kept_answer
from app.core.cache_counts import CacheCounts, Repeated
from app.core.cache_curve import CacheCurve
from app.core.cache_key import CacheKey
from app.core.flights import Flight, Flights, Tell
from app.core.kept_answer import Generation
from app.core.recent_keys import RecentKeys
from app.core.relay import Reception
from app.core.run import Answer, CacheMode, CacheState
from app.core.shared_answers import SharedAnswer, SharedAnswers
from app.core.telling import Telling
from app.stores.memory import Kept, MemoryStore
from app.stores.protocol import Counter, SharedStore

_REPEATED = 256
"""Answers of which it is only noted how often they went out, until somebody asks for the counts."""

Began = Callable[[], None]
"""What a run calls when nothing stands between it and the model any more: no limit, no budget, no queue."""

Run = Callable[[Tell | None, Began], Awaitable[Answer]]
"""Asks the model. With a `Tell` it is asked for a stream, and what comes is passed on."""

Recalled = tuple[Kept, float, float]
"""What the memory keeps, its age and what is left of its life, in seconds."""


class Generations(Protocol):
    """The part of a `SharedStore` that outdates what was remembered."""

    def generation(self, counter: Counter) -> int | None:
        """See `SharedStore.generation`."""
        ...

    async def bump(self, counter: Counter) -> int:
        """See `SharedStore.bump`."""
        ...


class CacheService:
    """Remembers answers: in this process, and in `tier` for all workers (or replicas) where there are several.

    Equal questions that are asked at once share one run, over processes too. The table of flights owns that run:
    whoever leaves harms nobody, the last one to leave cancels it, and a failure reaches those who wait and is not
    kept. An entry, and a flight, belongs to the generation in which it began; a clear begins the next one. A tier
    that fails is a miss, never an error; while the generation is not known nothing remembered is trusted.
    """

    def __init__(
        self,
        memory: MemoryStore,
        generations: Generations,
        *,
        enabled: bool,
        ttl_s: float,
        tier: SharedStore | None = None,
        clean_up_every_s: float = 30.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.enabled = enabled
        self.ttl_s = ttl_s
        self.memory = memory
        self._counts = CacheCounts()
        self._repeated: dict[bytes, Repeated] = {}
        self.curve = CacheCurve(max_bytes=memory.max_bytes, ttl_s=ttl_s)
        self.shared = None if tier is None else SharedAnswers(tier, jitter=jitter)
        self._generations = generations
        self._clean_up_every_s = clean_up_every_s
        self._jitter = jitter
        self._flights = Flights()
        self._recent = RecentKeys()
        self._cleaner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the periodic clean-up; `aclose()` ends it."""
        self._cleaner = asyncio.create_task(self._clean_for_ever(), name="cache-clean-up")

    async def aclose(self) -> None:
        """End the clean-up and every run that is still under way."""
        if self._cleaner is not None:
            self._cleaner.cancel()
            await asyncio.gather(self._cleaner, return_exceptions=True)
        await self._flights.aclose()
        if self.shared is not None:
            await self.shared.relay.aclose()

    async def get_or_run(
        self, key: CacheKey, run: Run, *, mode: CacheMode, ttl_s: float | None = None, alone: bool = False
    ) -> Answer:
        """The answer kept under `key`, or that of a run under way, or that of `run`, which is then kept.

        The answer's `cache`, `age_s` and `ttl_s` say which. Only an answer that calls itself `storable` is kept.
        `alone` keeps this question from sharing a run with others that are asked at the same time.
        """
        if not self.enabled or mode == "off":
            return replace(await run(None, lambda: None), cache="BYPASS")
        if mode == "use" and (found := self._recall(key)) is not None:
            return found
        async with self._telling(key, run, mode=mode, ttl_s=ttl_s, alone=alone, streamed=False) as telling:
            return await telling.answer()

    @asynccontextmanager
    async def open_stream(
        self, key: CacheKey, run: Run, *, mode: CacheMode, ttl_s: float | None = None, alone: bool = False
    ) -> AsyncGenerator[Telling]:
        """The same as a `Telling`, as soon as it is known where the answer comes from.

        Leaving the block early leaves the run to the others; the last one to leave ends it.
        """
        mode = mode if self.enabled else "off"
        if mode == "use" and (found := self._recall(key)) is not None:
            yield Telling("HIT", answer=found)
            return
        async with self._telling(key, run, mode=mode, ttl_s=ttl_s, alone=alone, streamed=True) as telling:
            yield telling

    def recall(self, digest: bytes, agent: str) -> Recalled | None:
        """What is kept under a key's digest; not counted.

        For whoever knows that the question and the caller's scope are those of the key.
        """
        generation = self._generation(agent)
        if generation is None or (held := self.memory.get(digest, generation=generation)) is None:
            return None
        return held, self.memory.age_s(held), self.memory.left_s(held)

    def keep_beside(self, digest: bytes, kept: Kept, made: bytes) -> None:
        """Have what was `made` of a recalled value at hand as `kept.made` the next time, where there is room for it."""
        self.memory.attach(digest, kept, made)

    def count_hit(self, agent: str, digest: bytes, size: int, saved: Answer) -> None:
        """Count an answer from memory. `size` is that of its entry, in bytes."""
        repeated = self._repeated.get(digest)
        if repeated is None or repeated.answer is not saved:
            if repeated is not None or len(self._repeated) >= _REPEATED:
                self._count_repeated()
            repeated = self._repeated[digest] = Repeated(agent, saved)
        repeated.times += 1
        if digest < self.curve.first_unsampled:
            self.curve.record(digest, size)

    @property
    def counts(self) -> CacheCounts:
        """What happened so far in this worker."""
        self._count_repeated()
        return self._counts

    async def clear(self, agent: str | None = None) -> int:
        """Outdate every entry, or those of one agent, for everybody; gives how many this worker held.

        When it returns, no worker and no replica serves an entry stored before. Raises `StoreUnavailable` where
        that cannot be promised.
        """
        if agent is not None:
            await self._generations.bump(f"cache:{agent}")
            return self.memory.clear(tag=agent)
        await self._generations.bump("cache")
        self._recent.clear()
        return self.memory.clear()

    def clean_up(self) -> int:
        """Remove expired entries and count that; gives how many they were."""
        started = perf_counter()
        removed = self.memory.remove_expired(self._generation)
        self._counts.clean_up(removed, seconds=perf_counter() - started)
        return removed

    @property
    def waiting(self) -> int:
        """How many callers wait for a run right now, those included for whom it was begun."""
        return self._flights.waiting

    def numbers(self) -> dict[str, Any]:
        """The cache of this worker in the contract's words."""
        memory = self.memory
        return self.counts.numbers() | {
            "enabled": self.enabled,
            "backend": "memory" if self.shared is None else self.shared.kind,
            "entries": len(memory),
            "bytes": memory.bytes,
            "max_bytes": memory.max_bytes,
            "ttl_seconds": self.ttl_s,
            "evictions": memory.evictions,
            "expirations": memory.expirations,
            "recommendations": self.curve.recommendations(),
        }

    @asynccontextmanager
    async def _telling(
        self, key: CacheKey, run: Run, *, mode: CacheMode, ttl_s: float | None, alone: bool, streamed: bool
    ) -> AsyncGenerator[Telling]:
        generation = self._generation(key.agent)
        joinable = mode == "use" and not alone
        place = (generation, key.digest) if joinable else object()

        async def fly(flight: Flight) -> Answer:
            tell = flight.tell if streamed else None
            if mode == "off":
                return replace(await run(tell, partial(flight.decide, "BYPASS")), cache="BYPASS")
            if mode == "refresh":
                answer = await run(tell, partial(flight.decide, "REFRESH"))
                return await self._keep(key, answer, generation, ttl_s, cache="REFRESH")
            return await self._fly(flight, key, run, tell, generation, ttl_s, joinable=joinable)

        with self._flights.aboard(place, fly) as (flight, joined):
            state: CacheState = await flight.decided()
            if joined and state == "MISS":
                state = "COALESCED"

            def finish(answer: Answer) -> Answer:
                if not joined:
                    return answer
                if answer.cache == "HIT":
                    self._counts.hit(key.agent, answer)
                    return answer
                self._counts.share(key.agent, answer)
                return replace(answer, cache="COALESCED", attempts=(), differs=())

            if state == "HIT":
                yield Telling(state, answer=finish(await flight.answer()))
                return
            yield Telling(state, flight=flight, finish=finish)

    async def _fly(
        self,
        flight: Flight,
        key: CacheKey,
        run: Run,
        tell: Tell | None,
        generation: Generation | None,
        ttl_s: float | None,
        *,
        joinable: bool,
    ) -> Answer:
        """One run for all who are aboard: the shared store is asked first, then, once for all processes, the model."""

        async def ask() -> Answer:
            self._counts.misses += 1
            differs = self._recent.differs(key)
            answer = await run(tell, partial(flight.decide, "MISS"))
            return await self._keep(key, answer, generation, ttl_s, cache="MISS", differs=differs)

        if self.shared is None or generation is None:
            return await ask()
        since = self.shared.relay.moment()
        found = await self.shared.find(key, generation)
        if isinstance(found, SharedAnswer):
            return self._hit(flight, key, found, generation)
        if not joinable:
            return await ask()
        turn, kept = self.shared.turn(key.digest), False
        try:
            if not await turn.take():
                async with self.shared.relay.open_reception(key, generation) as reception:
                    found = await self.shared.wait_for_others(turn, key, generation, reception if tell else None)
                    if isinstance(found, Reception):
                        return await self._follow(flight, key, found, generation)
                if isinstance(found, SharedAnswer):
                    kept = True
                    return self._hit(flight, key, found, generation)
            if tell is None or not turn.is_held:
                answer = await ask()
            else:
                async with self.shared.relay.broadcast(flight, key, generation, since=since) as broadcast:
                    answer = broadcast.answer = await ask()
            kept = answer.ttl_s is not None
            return answer
        finally:
            await turn.give_back(kept=kept)

    async def _follow(self, flight: Flight, key: CacheKey, reception: Reception, generation: Generation) -> Answer:
        """The answer of another process's run, which those who are aboard hear while it is made."""
        assert self.shared is not None
        shared = self.shared

        async def recall() -> Answer | None:
            found = await shared.find(key, generation)
            return self._bring_near(key, found, generation) if isinstance(found, SharedAnswer) else None

        flight.decide("COALESCED")
        answer = await reception.follow(flight.tell, recall)
        self._counts.share(key.agent, answer)
        return replace(answer, cache="COALESCED")

    def _hit(self, flight: Flight, key: CacheKey, found: SharedAnswer, generation: Generation) -> Answer:
        flight.decide("HIT")
        self._counts.hit(key.agent, found.answer)
        return self._bring_near(key, found, generation)

    def _bring_near(self, key: CacheKey, found: SharedAnswer, generation: Generation) -> Answer:
        """The answer that the shared store had, which from now on the memory has too."""
        if found.left_s > 0:
            self.memory.put(
                key.digest, found.value, ttl_s=found.left_s, generation=generation, tag=key.agent, age_s=found.age_s
            )
        self.curve.record(key.digest, len(found.value))
        return replace(found.answer, age_s=found.age_s, ttl_s=found.left_s, kept_as=key.digest)

    def _recall(self, key: CacheKey) -> Answer | None:
        generation = self._generation(key.agent)
        if generation is None or (held := self.memory.get(key.digest, generation=generation)) is None:
            return None
        kept = kept_answer.read(held.value, key)
        if kept is None:
            return None
        self._counts.hit(key.agent, kept.answer)
        self.curve.record(key.digest, len(held.value))
        age_s, left_s = self.memory.age_s(held), self.memory.left_s(held)
        return replace(kept.answer, age_s=age_s, ttl_s=left_s, kept_as=key.digest)

    async def _keep(
        self,
        key: CacheKey,
        answer: Answer,
        generation: Generation | None,
        ttl_s: float | None,
        *,
        cache: CacheState,
        differs: tuple[str, ...] = (),
    ) -> Answer:
        """`answer` with what is now to be said of it, in the memory and the tier where it may be."""
        if not answer.storable or generation is None:
            return replace(answer, cache=cache, differs=differs)
        # Up to a tenth less, so that what was stored together does not expire together.
        life_s = (ttl_s or self.ttl_s) * (1 - 0.1 * self._jitter())
        value = kept_answer.write(key, answer, generation=generation, life_s=life_s)
        if not self.memory.put(key.digest, value, ttl_s=life_s, generation=generation, tag=key.agent):
            return replace(answer, cache=cache, differs=differs)
        self._counts.stores += 1
        self.curve.record(key.digest, len(value))
        self._recent.add(key)
        if self.shared is not None:
            await self.shared.put(key.digest, value, ttl_s=life_s)
        return replace(answer, cache=cache, differs=differs, ttl_s=life_s, kept_as=key.digest)

    def _count_repeated(self) -> None:
        repeated, self._repeated = self._repeated, {}
        for one in repeated.values():
            self._counts.hit(one.agent, one.answer, one.times)

    def _generation(self, agent: str) -> Generation | None:
        """What is current: for all agents, and for this one. `None` while it cannot be known."""
        everybody, one = self._generations.generation("cache"), self._generations.generation(f"cache:{agent}")
        return None if everybody is None or one is None else (everybody, one)

    async def _clean_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._clean_up_every_s)
            self.clean_up()
