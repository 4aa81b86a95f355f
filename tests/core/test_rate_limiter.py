"""The rate limiter: exact, by user and by key, and still a limiter when the store is away."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from app.core.rate_limiter import Allowance, RateLimiter, current
from app.core.run import Caller
from app.errors import LimitExceeded, StoreUnavailable
from app.stores.meters import Meters
from app.stores.protocol import Verdict

ANN = Caller("1", "ann", "user")
KEY = replace(ANN, key_id="k1", requests_per_minute=3, tokens_per_minute=300)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """A shared store that can be away."""

    def __init__(self, clock: Clock) -> None:
        self.meters = Meters(clock=clock)
        self.away = False
        self.asked = 0

    async def take(self, key: bytes, *, cost: int = 1, limit: int, window_s: float, force: bool = False) -> Verdict:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("away")
        return self.meters.take(key, cost=cost, limit=limit, window_s=window_s, force=force)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(clock)


async def admitted(limiter: RateLimiter, number: int, caller: Caller = ANN) -> int:
    found = await asyncio.gather(*(limiter.admit(caller) for _ in range(number)))
    return sum(allowance is not None and allowance.allowed for allowance in found)


async def test_of_400_at_once_100_are_admitted_and_the_rest_hears_when_to_come_back(clock: Clock, store: Store) -> None:
    limiter = RateLimiter(store.take, requests_per_minute=100, clock=clock)
    assert await admitted(limiter, 400) == 100
    refused = await limiter.admit(ANN)
    assert refused is not None
    assert refused.requests is not None
    assert (refused.allowed, refused.requests.limit, refused.requests.remaining) == (False, 100, 0)
    assert refused.retry_after_s == pytest.approx(0.6)
    assert refused.requests.reset_s == pytest.approx(60)
    assert refused.refusal().retry_after_s == refused.retry_after_s
    clock.now += 0.59
    assert await admitted(limiter, 1) == 0
    clock.now += 0.02
    assert await admitted(limiter, 2) == 1


async def test_users_and_groups_count_apart_and_the_wide_group_is_wide(clock: Clock, store: Store) -> None:
    limiter = RateLimiter(store.take, requests_per_minute=2, clock=clock)
    assert await admitted(limiter, 5) == 2
    assert await admitted(limiter, 5, replace(ANN, id="2")) == 2
    other = await limiter.admit(ANN, "other")
    assert other is not None
    assert other.requests is not None
    assert (other.allowed, other.requests.limit) == (True, 600)


async def test_nothing_is_counted_where_nothing_is_limited(store: Store) -> None:
    limiter = RateLimiter(store.take, requests_per_minute=0)
    assert await limiter.admit(ANN) is None
    assert await limiter.admit(ANN, "other") is None
    assert await limiter.reserve_tokens(ANN, 10**9) is None
    assert store.asked == 0


async def test_a_key_keeps_its_own_limit_and_that_of_its_user(clock: Clock, store: Store) -> None:
    limiter = RateLimiter(store.take, requests_per_minute=10, clock=clock)
    assert await admitted(limiter, 5, KEY) == 3
    # The two that the key refused were not counted against the user.
    assert await admitted(limiter, 20) == 7
    # Without a limit of the server the key's remains.
    assert await admitted(RateLimiter(store.take, requests_per_minute=0, clock=clock), 5, replace(KEY, key_id="2")) == 3


async def test_tokens_are_reserved_and_then_what_was_used_counts(clock: Clock, store: Store) -> None:
    limiter = RateLimiter(store.take, requests_per_minute=0, tokens_per_minute=1000, clock=clock)
    allowance = await limiter.admit(ANN)
    assert allowance is not None
    assert allowance.allowed
    assert allowance.requests is None
    first = await limiter.reserve_tokens(ANN, 600)
    assert first is not None
    assert allowance.tokens is not None
    assert allowance.tokens.remaining == 400
    with pytest.raises(LimitExceeded, match="limit of 1000 model tokens a minute, and this prompt may need 600") as no:
        await limiter.reserve_tokens(ANN, 600)
    assert no.value.retry_after_s == pytest.approx(12)
    await first.settle(100)
    await first.settle(100)
    assert allowance.tokens.remaining == 900
    second = await limiter.reserve_tokens(ANN, 600)
    assert second is not None
    await second.settle(1500)
    assert (allowance.tokens.remaining, allowance.tokens.reset_s) == (0, pytest.approx(96))


async def test_an_estimate_above_the_whole_limit_passes_where_nothing_else_is_taken(clock: Clock, store: Store) -> None:
    limiter = RateLimiter(store.take, requests_per_minute=0, tokens_per_minute=1000, clock=clock)
    hold = await limiter.reserve_tokens(ANN, 50_000)
    assert hold is not None
    with pytest.raises(LimitExceeded):
        await limiter.reserve_tokens(ANN, 1)
    await hold.settle(10)
    await limiter.reserve_tokens(ANN, 900)


async def test_what_the_user_refuses_is_given_back_to_the_key(clock: Clock, store: Store) -> None:
    limiter = RateLimiter(store.take, requests_per_minute=0, tokens_per_minute=100, clock=clock)
    allowance = Allowance("prompts")
    current.set(allowance)
    await limiter.reserve_tokens(ANN, 100)
    with pytest.raises(LimitExceeded, match="limit of 100 "):
        await limiter.reserve_tokens(KEY, 50)
    clock.now += 60
    await limiter.reserve_tokens(KEY, 1)
    assert store.meters.take(b"tokens key k1", cost=299, limit=300, window_s=60).allowed


async def test_while_the_store_is_away_this_process_counts_on(
    clock: Clock, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[None] = []
    limiter = RateLimiter(store.take, requests_per_minute=10, on_local_count=lambda: counted.append(None), clock=clock)
    assert await admitted(limiter, 4) == 4
    store.away = True
    with caplog.at_level(logging.WARNING):
        # It goes on from what the store said last: no second burst.
        assert await admitted(limiter, 20) == 6
        assert limiter.counts_locally
        asked = store.asked
        assert await admitted(limiter, 20) == 0
        assert store.asked == asked, "a store that is away must not be asked for every request"
        assert len(counted) == 40
        clock.now += 6.5
        store.away, store.meters = False, Meters(clock=clock)
        # It was restarted and has forgotten everything; this process has not.
        assert await admitted(limiter, 20) == 1
        assert not limiter.counts_locally
    assert [record.message for record in caplog.records] == [
        "the shared store is away; every process counts its limits alone",
        "the shared store is back; limits are counted together again",
    ]
    clock.now += 61
    assert await admitted(limiter, 20) == 10


async def test_a_store_that_stays_away_is_asked_by_one_request_a_second(clock: Clock, store: Store) -> None:
    limiter = RateLimiter(store.take, requests_per_minute=1000, clock=clock)
    store.away = True
    await admitted(limiter, 1)
    for _ in range(3):
        clock.now += 1
        await admitted(limiter, 50)
    assert store.asked == 4


async def test_a_large_limit_is_taken_by_the_handful_and_never_exceeded(clock: Clock, store: Store) -> None:
    limiters = [RateLimiter(store.take, requests_per_minute=50_000, clock=clock) for _ in range(2)]
    allowed = sum([await admitted(limiter, 1) for _ in range(24_000) for limiter in limiters])
    assert allowed == 48_000
    assert store.asked <= 48_000 / 5 + 2
    allowed += sum([await admitted(limiter, 1) for _ in range(2000) for limiter in limiters])
    assert allowed == 50_000


@pytest.mark.parametrize("limit", [10, 40_000])
async def test_at_once_is_counted_like_all_others_and_never_refused(clock: Clock, limit: int) -> None:
    meters = Meters(clock=clock)
    asked = 0

    async def take(key: bytes, **what: Any) -> Verdict:
        return meters.take(key, **what)

    def take_at_once(key: bytes, **what: Any) -> Verdict:
        nonlocal asked
        asked += 1
        return meters.take(key, **what)

    limiter = RateLimiter(take, take_at_once=take_at_once, requests_per_minute=limit, clock=clock)
    first = limiter.admit_at_once(ANN)
    assert first is not None
    assert first.requests is not None
    assert first.requests.remaining == limit - 1
    second = await limiter.admit(ANN)
    assert second is not None
    assert second.requests is not None
    assert second.requests.remaining == limit - 2
    assert all(limiter.admit_at_once(ANN) is not None for _ in range(limit - 2))
    assert asked <= 10_000
    assert limiter.admit_at_once(ANN) is None
    last = await limiter.admit(ANN)
    assert last is not None
    assert not last.allowed


async def test_at_once_is_not_for_keys_with_limits_nor_for_a_store_that_is_away(clock: Clock, store: Store) -> None:
    def take_at_once(_: bytes, **__: Any) -> Verdict:
        pytest.fail("it was asked")

    limiter = RateLimiter(store.take, take_at_once=take_at_once, requests_per_minute=10, clock=clock)
    assert limiter.admit_at_once(KEY) is None
    store.away = True
    await limiter.admit(ANN)
    assert limiter.admit_at_once(ANN) is None
    store.away = False
    clock.now += 2
    await limiter.admit(ANN)
    assert not limiter.counts_locally
    assert limiter.admit_at_once(ANN) is None, "both have to allow it for a minute"
    unlimited = RateLimiter(store.take, requests_per_minute=0, clock=clock)
    assert unlimited.admit_at_once(ANN) == Allowance("prompts")
