"""Rate limits: how many requests and model tokens a caller may have a minute, over all workers and replicas."""

import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from math import ceil
from time import monotonic
from typing import Literal

from app.core.run import Caller
from app.errors import LimitExceeded, StoreUnavailable
from app.stores.meters import Meters
from app.stores.protocol import Verdict

_log = logging.getLogger(__name__)

Take = Callable[..., Awaitable[Verdict]]
"""`SharedStore.take`."""

TakeAtOnce = Callable[..., Verdict | None]
"""`SharedStore.take_at_once`."""

Group = Literal["prompts", "other"]
"""Routes that count together: those that ask a model, and all others that need a login."""

WINDOW_S = 60.0
_OTHER_FACTOR = 10
_OTHER_LEAST = 600
"""Whoever may ask few prompts must still be able to look at what came of them, with a page that polls."""


_BULK = 10_000
"""Of a limit of twice this and more, a ten-thousandth is taken at a time: the caller loses at most that much a second
to each process, and a request does not pay for the store (10 µs on one machine, a round trip with Redis)."""
_BULK_S = 1.0
_BULKS_KEPT = 10_000


@dataclass(slots=True)
class _Bulk:
    """Requests that were taken from a meter before they came."""

    left: int
    until: float
    taken: Verdict


@dataclass(slots=True)  # not frozen: one is made for each hit, and that would cost three times as much
class Meter:
    """What a limit is, what is left of it, and how many seconds it takes until it is as if never used."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(slots=True)
class Allowance:
    """What the limits say of one request. A run that takes tokens adds their meter while the request goes on."""

    group: Group
    requests: Meter | None = None
    tokens: Meter | None = None
    allowed: bool = True
    retry_after_s: float = 0.0

    def refusal(self) -> LimitExceeded:
        """The error of a request that is not `allowed`."""
        assert self.requests is not None
        what = "prompts" if self.group == "prompts" else "requests other than prompts"
        return LimitExceeded(
            f"over the limit of {self.requests.limit} {what} a minute; {_come_back(self.retry_after_s)}",
            retry_after_s=self.retry_after_s,
        )


current: ContextVar[Allowance | None] = ContextVar("current", default=None)
"""The allowance of the request that is being served: how the meter of its tokens gets into its headers."""


class RateLimiter:
    """Counts the requests and model tokens of each caller in the shared store.

    A limit belongs to the user, whatever credential is used; an API key with a limit of its own has to keep both.
    GCRA: as many at once as the limit says, then one every `60 / limit` seconds. 0 switches a limit off.

    While the store is away each process counts for itself, beginning with what it last heard from the store. For a
    minute after the store is back both have to allow a request, since the store may have forgotten (a restart).
    """

    def __init__(
        self,
        take: Take | None = None,
        *,
        take_at_once: TakeAtOnce | None = None,
        requests_per_minute: int,
        tokens_per_minute: int = 0,
        on_refusal: Callable[[Group, Literal["requests", "tokens"]], None] | None = None,
        on_local_count: Callable[[], None] | None = None,
        pause_s: float = 1.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Count in the store behind `take`, or in this process alone; an absent store is asked every `pause_s`."""
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self.others_per_minute = max(_OTHER_LEAST, requests_per_minute * _OTHER_FACTOR) if requests_per_minute else 0
        self._shared = take
        self._shared_at_once = take_at_once
        self._on_refusal = on_refusal
        self._on_local_count = on_local_count
        self._pause_s = pause_s
        self._clock = clock
        self._local = Meters(clock=clock)
        self._bulks: dict[bytes, _Bulk] = {}
        self._away = False
        self._ask_again_at = 0.0
        self._doubted_until = 0.0

    @property
    def counts_locally(self) -> bool:
        """Whether the shared store is away, so that every process has a count of its own."""
        return self._away

    async def admit(self, caller: Caller, group: Group = "prompts") -> Allowance | None:
        """Count one request of `caller` if its limits allow it; `None` where nothing limits it.

        What is refused is not counted. It is for the caller of this method to raise `refusal()`, so that a refused
        request has its `Allowance` too.
        """
        if group == "other":
            limit, own = self.others_per_minute, None
        else:
            limit, own = self.requests_per_minute, caller.requests_per_minute
        if not limit and not own and not self.tokens_per_minute and not caller.tokens_per_minute:
            return None
        allowance = Allowance(group)
        current.set(allowance)
        if own and caller.key_id is not None:
            await self._count(allowance, b"rate key " + caller.key_id.encode(), own)
        if limit and allowance.allowed:
            await self._count(allowance, f"rate {group} {caller.id}".encode(), limit)
        if not allowance.allowed and self._on_refusal is not None:
            self._on_refusal(group, "requests")
        return allowance

    def admit_at_once(self, caller: Caller) -> Allowance | None:
        """Count one prompt of `caller` as `admit` does; `None`, and nothing counted, where that would wait or refuse.

        An `Allowance` without meters where nothing limits the caller.
        """
        if caller.requests_per_minute:
            return None
        limit = self.requests_per_minute
        if not limit:
            return Allowance("prompts")
        verdict = self._count_at_once(f"rate prompts {caller.id}".encode(), limit)
        if verdict is None or not verdict.allowed:
            return None
        return Allowance("prompts", Meter(limit, verdict.remaining, verdict.reset_s))

    def limits_tokens_of(self, caller: Caller) -> bool:
        """Whether the model tokens of this caller are limited."""
        return bool(self.tokens_per_minute or caller.tokens_per_minute)

    async def reserve_tokens(self, caller: Caller, estimate: int) -> "TokenHold | None":
        """Take the tokens that a run will need; `settle` the hold when it has ended, however it did.

        `None` where nothing limits the tokens of this caller. Raises `LimitExceeded` where too few are left.
        """
        meters: list[tuple[bytes, int]] = []
        if caller.tokens_per_minute and caller.key_id is not None:
            meters.append((b"tokens key " + caller.key_id.encode(), caller.tokens_per_minute))
        if self.tokens_per_minute:
            meters.append((b"tokens " + caller.id.encode(), self.tokens_per_minute))
        if not meters:
            return None
        taken: list[tuple[bytes, int, int]] = []
        for key, limit in meters:
            # What is larger than the whole limit has to wait until nothing else is taken.
            cost = max(1, min(estimate, limit))
            verdict = await self._take(key, cost=cost, limit=limit)
            if not verdict.allowed:
                await TokenHold(self, taken).settle(0)
                _show_tokens(verdict, limit)
                if self._on_refusal is not None:
                    self._on_refusal("prompts", "tokens")
                raise LimitExceeded(
                    f"over the limit of {limit} model tokens a minute, and this prompt may need {cost}; "
                    + _come_back(verdict.retry_after_s),
                    retry_after_s=verdict.retry_after_s,
                )
            _show_tokens(verdict, limit)
            taken.append((key, limit, cost))
        return TokenHold(self, taken)

    async def correct(self, key: bytes, limit: int, cost: int) -> None:
        """Take `cost` in any case, or give it back where it is below zero; `TokenHold` does this."""
        _show_tokens(await self._take(key, cost=cost, limit=limit, force=True), limit)

    async def _count(self, allowance: Allowance, key: bytes, limit: int) -> None:
        verdict = await self._take_from_bulk(key, limit) if limit >= 2 * _BULK else None
        if verdict is None:
            verdict = await self._take(key, cost=1, limit=limit)
        if allowance.requests is None or not verdict.allowed or verdict.remaining < allowance.requests.remaining:
            allowance.requests = Meter(limit, verdict.remaining, verdict.reset_s)
        if not verdict.allowed:
            allowance.allowed = False
            allowance.retry_after_s = verdict.retry_after_s

    def _count_at_once(self, key: bytes, limit: int) -> Verdict | None:
        """What `_count` finds out of one meter, where it does not have to wait for that."""
        if limit >= 2 * _BULK and (verdict := self._take_from_begun_bulk(key)) is not None:
            return verdict
        if self._shared is None:
            return self._local.take(key, cost=1, limit=limit, window_s=WINDOW_S)
        if self._shared_at_once is None or self._away or self._clock() < self._doubted_until:
            return None
        size = max(1, limit // _BULK)
        verdict = self._shared_at_once(key, cost=size, limit=limit, window_s=WINDOW_S)
        if verdict is None or not verdict.allowed:
            return None
        self._local.set(key, verdict.reset_s)
        return verdict if size == 1 else self._begin_bulk(key, size, verdict)

    async def _take_from_bulk(self, key: bytes, limit: int) -> Verdict | None:
        """One of several that were taken at once; `None` where there are not that many left in the meter."""
        if (verdict := self._take_from_begun_bulk(key)) is not None:
            return verdict
        size = limit // _BULK
        verdict = await self._take(key, cost=size, limit=limit)
        return self._begin_bulk(key, size, verdict) if verdict.allowed else None

    def _begin_bulk(self, key: bytes, size: int, taken: Verdict) -> Verdict | None:
        if len(self._bulks) >= _BULKS_KEPT:
            self._bulks.clear()
        self._bulks[key] = _Bulk(size, self._clock() + _BULK_S, taken)
        return self._take_from_begun_bulk(key)

    def _take_from_begun_bulk(self, key: bytes) -> Verdict | None:
        bulk = self._bulks.get(key)
        if bulk is None or not bulk.left or self._clock() >= bulk.until:
            return None
        bulk.left -= 1
        return Verdict(True, bulk.taken.remaining + bulk.left, 0.0, bulk.taken.reset_s)

    async def _take(self, key: bytes, *, cost: int, limit: int, force: bool = False) -> Verdict:
        if self._shared is None:
            return self._local.take(key, cost=cost, limit=limit, window_s=WINDOW_S, force=force)
        now = self._clock()
        own: Verdict | None = None
        if self._away or now < self._doubted_until:
            own = self._local.take(key, cost=cost, limit=limit, window_s=WINDOW_S, force=force)
            if not own.allowed or (self._away and now < self._ask_again_at):
                return self._counted_locally(own)
        # While the store is away, one request at a time finds out whether it is back.
        self._ask_again_at = now + self._pause_s
        try:
            verdict = await self._shared(key, cost=cost, limit=limit, window_s=WINDOW_S, force=force)
        except StoreUnavailable:
            self._lose()
            own = own or self._local.take(key, cost=cost, limit=limit, window_s=WINDOW_S, force=force)
            return self._counted_locally(own)
        if self._away:
            self._find_again()
        if own is None:
            self._local.set(key, verdict.reset_s)
        elif not verdict.allowed:
            self._local.take(key, cost=-cost, limit=limit, window_s=WINDOW_S)
        return verdict

    def _counted_locally(self, verdict: Verdict) -> Verdict:
        if self._on_local_count is not None:
            self._on_local_count()
        return verdict

    def _lose(self) -> None:
        if not self._away:
            _log.warning("the shared store is away; every process counts its limits alone")
        self._away = True

    def _find_again(self) -> None:
        self._away = False
        self._doubted_until = self._clock() + WINDOW_S
        _log.warning("the shared store is back; limits are counted together again")


class TokenHold:
    """Tokens that a run has taken before it was known how many it needs."""

    def __init__(self, limiter: RateLimiter, taken: list[tuple[bytes, int, int]]) -> None:
        self._limiter = limiter
        self._taken = taken

    async def settle(self, used: int) -> None:
        """Put what was really used in the place of the estimate. The first call counts."""
        taken, self._taken = self._taken, []
        for key, limit, cost in taken:
            if used != cost:
                await self._limiter.correct(key, limit, used - cost)


def _show_tokens(verdict: Verdict, limit: int) -> None:
    if (allowance := current.get()) is not None:
        allowance.tokens = Meter(limit, verdict.remaining, verdict.reset_s)


def _come_back(seconds: float) -> str:
    return f"try again in {ceil(seconds)} s"
