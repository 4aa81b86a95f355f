"""Answers remembered: one flight for equal questions, tiers of memory, and what both of them saved."""

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from time import perf_counter, time
from typing import Any, Literal, Protocol
from uuid import uuid4

from app.core import kept_answer
from app.core.cache_curve import CacheCurve
from app.core.cache_key import CacheKey, Marks, fewest_differing
from app.core.flights import Flight, Flights, Tell
from app.core.run import Answer, CacheMode, CacheState, RunEvent, TextDelta
from app.errors import StoreUnavailable
from app.stores.memory import Kept, MemoryStore
from app.stores.protocol import Counter, SharedStore

Began = Callable[[], None]
"""What a run calls when nothing stands between it and the model any more: no limit, no budget, no queue."""

Run = Callable[[Tell | None, Began], Awaitable[Answer]]
"""Asks the model. With a `Tell` it is asked for a stream, and what comes is passed on."""

Generation = tuple[int, int]

_LEASE_S = 5.0
"""How long another process may be silent about a run before this one asks the model itself."""
_NOTHING_KEPT = b"-"
"""Stands for a moment where an answer would be: the run ended without one that may be kept."""
_FAMILIAR = 256
_RECENT = 8


@dataclass(slots=True)
class Saved:
    """What hits and joined flights did not spend."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    seconds: float = 0.0

    def add(self, answer: Answer) -> None:
        """Count one answer that was not asked for again."""
        self.requests += answer.usage.requests
        self.input_tokens += answer.usage.input_tokens
        self.output_tokens += answer.usage.output_tokens
        self.cost_usd += answer.cost_usd or 0
        self.seconds += answer.model_s


@dataclass(slots=True)
class CacheCounts:
    """What happened so far in this worker; every number only grows."""

    hits: int = 0
    misses: int = 0
    coalesced: int = 0
    stores: int = 0
    cleanups: int = 0
    removed: int = 0
    tier_failures: int = 0
    last_cleanup_at: datetime | None = None
    last_cleanup_ms: float | None = None
    saved: dict[str, Saved] = field(default_factory=dict[str, Saved])
    """By agent."""


Recalled = tuple[Kept, float, float]
"""What the memory keeps, its age and what is left of its life, in seconds."""


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
        self.counts = CacheCounts()
        self.curve = CacheCurve(max_bytes=memory.max_bytes, ttl_s=ttl_s)
        self._generations = generations
        self._tier = tier
        self._clean_up_every_s = clean_up_every_s
        self._jitter = jitter
        self._flights = Flights()
        self._recent: OrderedDict[tuple[str, str], deque[Marks]] = OrderedDict()
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
        """Count a hit that `recall` made possible."""
        self.counts.hits += 1
        self._saved_for(agent).add(saved)
        self.curve.record(digest, size)

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
        self.counts.cleanups += 1
        self.counts.removed += removed
        self.counts.last_cleanup_at = datetime.now(UTC)
        self.counts.last_cleanup_ms = (perf_counter() - started) * 1000
        return removed

    @property
    def waiting(self) -> int:
        """How many callers wait for a run right now, those included for whom it was begun."""
        return self._flights.waiting

    def numbers(self) -> dict[str, Any]:
        """The cache of this worker in the contract's words."""
        counts, memory = self.counts, self.memory
        asked = counts.hits + counts.coalesced + counts.misses
        by_agent = list(counts.saved.values())
        return {
            "enabled": self.enabled,
            "backend": "memory" if self._tier is None else self._tier.kind,
            "entries": len(memory),
            "bytes": memory.bytes,
            "max_bytes": memory.max_bytes,
            "ttl_seconds": self.ttl_s,
            "hits": counts.hits,
            "misses": counts.misses,
            "coalesced": counts.coalesced,
            "hit_ratio": (counts.hits + counts.coalesced) / asked if asked else 0.0,
            "stores": counts.stores,
            "evictions": memory.evictions,
            "expirations": memory.expirations,
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
            "saved_by_agent": {
                agent: asdict(saved) | {"cost_usd": float(saved.cost_usd)} for agent, saved in counts.saved.items()
            },
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
                    self.counts.hits += 1
                else:
                    self.counts.coalesced += 1
                    answer = replace(answer, cache="COALESCED", attempts=(), differs=())
                self._saved_for(key.agent).add(answer)
                return answer

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
        """One run for all who are aboard: the shared tier is asked first, then, once for all processes, the model."""
        lease = _Lease(self._tier, key.digest) if joinable and self._tier is not None and generation else None
        found = await self._from_tier(key, generation)
        if lease is not None and not isinstance(found, Answer):
            found = await self._wait_for_others(lease, key, generation)
        if isinstance(found, Answer):
            self.counts.hits += 1
            self._saved_for(key.agent).add(found)
            flight.decide("HIT")
            return found
        self.counts.misses += 1
        kept = False
        try:
            nearest = self._nearest(key)
            answer = await run(tell, partial(flight.decide, "MISS"))
            answer = await self._keep(key, answer, generation, ttl_s, cache="MISS", differs=nearest)
            kept = answer.ttl_s is not None
        finally:
            if lease is not None:
                await lease.give_back(kept=kept)
        return answer

    async def _wait_for_others(
        self, lease: "_Lease", key: CacheKey, generation: Generation | None
    ) -> Answer | Literal["nothing"] | None:
        """While another process asks the model, wait for its answer; anything else means that it is this one's turn."""
        pause_s = 0.004
        while not await lease.take():
            await asyncio.sleep(pause_s * (0.5 + self._jitter()))
            pause_s = min(0.05, pause_s * 1.5)
            found = await self._from_tier(key, generation)
            if found is not None:
                return found
        return None

    async def _from_tier(self, key: CacheKey, generation: Generation | None) -> Answer | Literal["nothing"] | None:
        """What the shared tier keeps, brought near; `nothing` where a run has just ended without such an answer."""
        if self._tier is None or generation is None:
            return None
        try:
            value = await self._tier.get(key.digest)
        except StoreUnavailable:
            self.counts.tier_failures += 1
            return None
        if value is None or value == _NOTHING_KEPT:
            return value and "nothing"
        kept = kept_answer.read(value, key)
        if kept is None or kept.generation != generation:
            return None
        # The tier has seen to it that it lives; how long is told by clocks that may be set, hence the bounds.
        age_s = min(max(0.0, time() - kept.stored_at), kept.life_s)
        left_s = kept.life_s - age_s
        if left_s > 0:
            self.memory.put(key.digest, value, ttl_s=left_s, generation=generation, tag=key.agent, age_s=age_s)
        self.curve.record(key.digest, len(value))
        return replace(kept.answer, age_s=age_s, ttl_s=left_s, kept_as=key.digest)

    def _recall(self, key: CacheKey) -> Answer | None:
        generation = self._generation(key.agent)
        if generation is None or (held := self.memory.get(key.digest, generation=generation)) is None:
            return None
        kept = kept_answer.read(held.value, key)
        if kept is None:
            return None
        self.count_hit(key.agent, key.digest, len(held.value), kept.answer)
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
        self.counts.stores += 1
        self.curve.record(key.digest, len(value))
        self._remember(key)
        if self._tier is not None:
            try:
                await self._tier.put(key.digest, value, ttl_s=life_s)
            except StoreUnavailable:
                self.counts.tier_failures += 1
        return replace(answer, cache=cache, differs=differs, ttl_s=life_s, kept_as=key.digest)

    def _generation(self, agent: str) -> Generation | None:
        """What is current: for all agents, and for this one. `None` while it cannot be known."""
        everybody, one = self._generations.generation("cache"), self._generations.generation(f"cache:{agent}")
        return None if everybody is None or one is None else (everybody, one)

    def _saved_for(self, agent: str) -> Saved:
        saved = self.counts.saved.get(agent)
        if saved is None:
            saved = self.counts.saved[agent] = Saved()
        return saved

    def _remember(self, key: CacheKey) -> None:
        place = (key.scope, key.agent)
        marks = self._recent.get(place)
        if marks is None:
            marks = self._recent[place] = deque(maxlen=_RECENT)
            if len(self._recent) > _FAMILIAR:
                self._recent.popitem(last=False)
        marks.append(key.marks())

    def _nearest(self, key: CacheKey) -> tuple[str, ...]:
        """The ingredients in which the nearest of the last kept keys of this scope and agent differs."""
        marks = self._recent.get((key.scope, key.agent))
        if not marks:
            return ()
        return fewest_differing(key.marks(), marks)

    async def _clean_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._clean_up_every_s)
            self.clean_up()


class _Lease:
    """The right to ask the model one question, among the processes that share a store; renewed while it is held."""

    def __init__(self, store: SharedStore, digest: bytes) -> None:
        self._store = store
        self._digest = digest
        self._name = b"flight:" + digest
        self._owner = uuid4().hex
        self._renewing: asyncio.Task[None] | None = None

    async def take(self) -> bool:
        """Whether this process may ask; without a store everybody may."""
        try:
            if not await self._store.claim(self._name, self._owner, ttl_s=_LEASE_S):
                return False
        except StoreUnavailable:
            return True
        self._renewing = asyncio.create_task(self._renew(), name="cache-lease")
        return True

    async def give_back(self, *, kept: bool) -> None:
        """Let the next one ask; where nothing was `kept`, those who waited are told not to wait for each other."""
        if self._renewing is None:
            return
        self._renewing.cancel()
        try:
            if not kept:
                await self._store.put(self._digest, _NOTHING_KEPT, ttl_s=1.0)
            await self._store.release(self._name, self._owner)
        except StoreUnavailable:
            pass  # It ends by itself.

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_S / 3)
            try:
                await self._store.claim(self._name, self._owner, ttl_s=_LEASE_S)
            except StoreUnavailable:
                continue
