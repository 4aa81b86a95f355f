"""One contract for limits on every store that counts them: this process, the files of a machine, a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from app.core.rate_limiter import Allowance, RateLimiter, current
from app.core.run import Caller
from app.errors import LimitExceeded
from app.stores import redis_link
from app.stores.local import LocalStore
from app.stores.redis import RedisStore

ANN = Caller("1", "ann", "user")
KEY = replace(ANN, key_id="k1", tokens_per_minute=60)


@pytest.fixture(params=["memory", "local", pytest.param("redis", marks=pytest.mark.service)])
async def takes(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Any]]:
    """What two processes count with; in memory there is only one."""
    if request.param == "memory":
        yield [None]
        return
    # What is counted is the question here, and not how fast.
    monkeypatch.setattr(redis_link, "DEADLINE_S", 10.0)
    monkeypatch.setattr(redis_link, "_POOL_WAIT_S", 10.0)
    stores: list[LocalStore | RedisStore] = []
    for _ in range(2):
        if request.param == "local":
            stores.append(LocalStore(tmp_path / "shared"))
        else:
            store = RedisStore(request.getfixturevalue("redis_url"))
            await store.start()
            stores.append(store)
    yield [store.take for store in stores]
    for store in stores:
        await store.aclose()


async def test_of_400_at_once_the_limit_is_let_through(takes: list[Any]) -> None:
    limiters = [RateLimiter(take, requests_per_minute=100) for take in takes]
    began = monotonic()
    told = await asyncio.gather(*(limiters[number % len(limiters)].admit(ANN) for number in range(400)))
    took_s = monotonic() - began
    allowed = [allowance for allowance in told if allowance is not None and allowance.allowed]
    assert 100 <= len(allowed) <= 100 + took_s * 100 / 60
    refused = [allowance for allowance in told if allowance is not None and not allowance.allowed]
    assert all(0 < allowance.retry_after_s <= 0.601 for allowance in refused)
    assert not any(limiter.counts_locally for limiter in limiters)


async def test_tokens_are_reserved_corrected_given_back_and_owed(takes: list[Any]) -> None:
    """60 tokens a minute are one a second: what comes back meanwhile is known."""
    one, other = (RateLimiter(take, requests_per_minute=0, tokens_per_minute=60) for take in (takes[0], takes[-1]))
    if takes == [None]:
        other = one
    began = monotonic()
    shown = Allowance("prompts")
    current.set(shown)

    def left(expected: int) -> bool:
        assert shown.tokens is not None
        return expected <= shown.tokens.remaining <= expected + (monotonic() - began) + 1

    first = await one.reserve_tokens(ANN, 50)
    assert first is not None
    assert left(10)
    with pytest.raises(LimitExceeded) as refused:
        await other.reserve_tokens(ANN, 50)
    assert 40 - (monotonic() - began) - 1 <= (refused.value.retry_after_s or 0) <= 40
    await first.settle(10)
    assert left(50), "a negative correction gives back"
    second = await other.reserve_tokens(ANN, 40)
    assert second is not None
    await second.settle(170)
    assert shown.tokens is not None
    assert shown.tokens.remaining == 0
    assert 120 - (monotonic() - began) <= shown.tokens.reset_s <= 180.1, "what was used beyond the limit is owed"
    with pytest.raises(LimitExceeded):
        await one.reserve_tokens(ANN, 1)


async def test_what_the_user_refuses_is_given_back_to_the_key(takes: list[Any]) -> None:
    limiter = RateLimiter(takes[0], requests_per_minute=0, tokens_per_minute=60)
    hold = await limiter.reserve_tokens(ANN, 60)
    assert hold is not None
    with pytest.raises(LimitExceeded):
        await limiter.reserve_tokens(KEY, 50)
    await hold.settle(0)
    assert await limiter.reserve_tokens(KEY, 60) is not None, "the key's meter is as if never used"
