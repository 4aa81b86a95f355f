"""How long answers live, and what each agent's hits saved."""

from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path

import pytest

from app.core.cache_counts import Saved
from app.core.cache_key import cache_key
from app.core.cache_service import CacheService
from app.core.flights import Tell
from app.core.run import Answer, Usage
from app.stores.local import LocalStore
from app.stores.memory import MemoryStore


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LocalStore]:
    opened = LocalStore(tmp_path / "shared")
    yield opened
    await opened.aclose()


async def ask(cache: CacheService, prompt: str, *, agent: str = "default", tokens: int = 1) -> Answer:
    key = cache_key(scope="user:1", agent=agent, revision="1", models=["m"], instructions=None, prompt=prompt)

    async def run(tell: Tell | None, began: Callable[[], None]) -> Answer:
        return Answer(
            id="run",
            output="Hello",
            agent=agent,
            model="m",
            usage=Usage(tokens, 2 * tokens, 1),
            cost_usd=Decimal(tokens),
            model_s=float(tokens),
            storable=True,
        )

    return await cache.get_or_run(key, run, mode="use")


async def alive_at(ages_s: list[float], cache: CacheService, clock: Clock) -> list[int]:
    """How many of 100 answers that were kept at one moment are still kept at each of these ages."""
    began = clock.now
    for number in range(100):
        await ask(cache, f"question {number}")
    counts: list[int] = []
    for age_s in ages_s:
        clock.now = began + age_s
        cache.clean_up()
        counts.append(len(cache.memory))
    return counts


async def test_answers_kept_together_do_not_expire_together(store: LocalStore) -> None:
    clock = Clock()
    cache = CacheService(MemoryStore(max_bytes=10**6, clock=clock), store, enabled=True, ttl_s=100)
    at_89, at_92, at_95, at_98, at_101 = await alive_at([89, 92, 95, 98, 101], cache, clock)
    assert (at_89, at_101) == (100, 0)
    assert at_89 > at_92 > at_95 > at_98 > 0

    memory = MemoryStore(max_bytes=10**6, clock=clock)
    exact = CacheService(memory, store, enabled=True, ttl_s=100, jitter=lambda: 0.0)
    assert await alive_at([89, 99, 101], exact, clock) == [100, 100, 0], "the control: it is the jitter"


async def test_what_two_agents_save_is_kept_apart(store: LocalStore) -> None:
    cache = CacheService(MemoryStore(max_bytes=10**6), store, enabled=True, ttl_s=100)
    for _ in range(3):
        await ask(cache, "Hi", agent="poet", tokens=10)
    for _ in range(2):
        await ask(cache, "Hi", agent="clerk", tokens=1)
    await ask(cache, "only once", agent="idle")
    poet = Saved(requests=2, input_tokens=20, output_tokens=40, cost_usd=Decimal(20), seconds=20.0)
    clerk = Saved(requests=1, input_tokens=1, output_tokens=2, cost_usd=Decimal(1), seconds=1.0)
    assert cache.counts.saved == {"poet": poet, "clerk": clerk}
    numbers = cache.numbers()
    assert numbers["saved"] == {
        "requests": 3,
        "input_tokens": 21,
        "output_tokens": 42,
        "cost_usd": 21.0,
        "seconds": 21.0,
    }
