"""Two processes' caches over one shared store: one entry, one run, one clear; a tier that fails is a miss."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.core.cache_key import CacheKey, cache_key
from app.core.cache_service import Began, CacheService, Run
from app.core.flights import Tell
from app.core.run import Answer, TextDelta, Usage
from app.errors import ProviderFailed, StoreUnavailable
from app.stores.local import LocalStore
from tests.core.conftest import OpenStore, cache_on


def key(prompt: str = "Hi", scope: str = "user:1", agent: str = "default") -> CacheKey:
    return cache_key(scope=scope, agent=agent, revision="1", models=["m"], instructions=None, prompt=prompt)


class Model:
    """Counts how often it is asked; answers when it is let."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = asyncio.Event()
        self.fails = False
        self.storable = True

    async def run(self, tell: Tell | None, began: Began) -> Answer:
        self.calls += 1
        if tell is not None:
            tell(TextDelta("He"))
        await self.go.wait()
        if self.fails:
            raise ProviderFailed("no")
        if tell is not None:
            tell(TextDelta("llo"))
        return Answer(
            id=f"run-{self.calls}",
            output="Hello",
            agent="default",
            model="m",
            usage=Usage(3, 2, 1),
            cost_usd=None,
            model_s=0.5,
            storable=self.storable,
        )


@pytest.fixture
async def pair(open_store: OpenStore) -> AsyncIterator[tuple[CacheService, CacheService]]:
    caches = cache_on(await open_store()), cache_on(await open_store())
    yield caches
    for cache in caches:
        await cache.aclose()


async def asked(cache: CacheService, run: Run, prompt: str = "Hi", agent: str = "default") -> Answer:
    return await cache.get_or_run(key(prompt, agent=agent), run, mode="use")


async def test_an_answer_of_one_process_is_a_hit_in_the_other(pair: tuple[CacheService, CacheService]) -> None:
    one, other = pair
    model = Model()
    model.go.set()
    first, second = await asked(one, model.run), await asked(other, model.run)
    assert (first.cache, second.cache, model.calls) == ("MISS", "HIT", 1)
    assert (second.output, second.usage, second.model_s) == (first.output, first.usage, first.model_s)
    assert second.ttl_s is not None
    assert 50 < second.ttl_s <= 57
    assert (await asked(other, model.run)).cache == "HIT"


async def test_equal_questions_in_two_processes_ask_the_model_once(pair: tuple[CacheService, CacheService]) -> None:
    model = Model()
    everybody = [asyncio.create_task(asked(cache, model.run)) for _ in range(50) for cache in pair]
    while sum(cache.waiting for cache in pair) < 100 or not model.calls:
        await asyncio.sleep(0.005)
    model.go.set()
    answers = await asyncio.gather(*everybody)
    assert model.calls == 1
    assert all(answer.output == "Hello" for answer in answers)


async def test_a_clear_in_one_process_is_a_clear_in_both(pair: tuple[CacheService, CacheService]) -> None:
    one, other = pair
    model = Model()
    model.go.set()
    for cache in pair:
        await asked(cache, model.run)
        await asked(cache, model.run, agent="second")
    assert model.calls == 2
    await one.clear(agent="second")
    assert (await asked(other, model.run)).cache == "HIT"
    assert (await asked(other, model.run, agent="second")).cache == "MISS"
    await other.clear()
    assert (await asked(one, model.run)).cache == "MISS"
    assert (await asked(one, model.run, agent="second")).cache == "MISS"


async def test_a_restart_keeps_the_answers(open_store: OpenStore) -> None:
    model = Model()
    model.go.set()
    before = cache_on(await open_store())
    await asked(before, model.run)
    await before.aclose()
    after = cache_on(await open_store())
    assert (await asked(after, model.run)).cache == "HIT"
    await after.aclose()


async def test_where_nothing_is_kept_the_others_do_not_wait_for_each_other(
    pair: tuple[CacheService, CacheService],
) -> None:
    model = Model()
    model.storable = False
    model.go.set()
    answers = await asyncio.gather(*(asked(cache, model.run) for cache in pair))
    assert all(answer.output == "Hello" for answer in answers)
    assert model.calls == 2


async def test_a_failure_is_not_kept_for_the_other(pair: tuple[CacheService, CacheService]) -> None:
    one, other = pair
    model = Model()
    model.go.set()
    model.fails = True
    with pytest.raises(ProviderFailed):
        await asked(one, model.run)
    model.fails = False
    assert (await asked(other, model.run)).cache == "MISS"


async def test_the_process_that_asks_may_give_up_and_the_other_takes_over(
    pair: tuple[CacheService, CacheService],
) -> None:
    one, other = pair
    model = Model()
    first = asyncio.create_task(asked(one, model.run))
    while not model.calls:
        await asyncio.sleep(0.005)
    second = asyncio.create_task(asked(other, model.run))
    while not other.waiting:
        await asyncio.sleep(0.005)
    first.cancel()
    while model.calls < 2:
        await asyncio.sleep(0.005)
    model.go.set()
    assert (await second).output == "Hello"


async def test_another_scope_is_another_answer_even_under_a_forged_digest(
    pair: tuple[CacheService, CacheService],
) -> None:
    one, other = pair
    model = Model()
    model.go.set()
    anna, ben = key(scope="user:1"), key(scope="user:2")
    await one.get_or_run(anna, model.run, mode="use")
    forged = CacheKey(anna.digest, ben.scope, ben.agent, ben.written)
    assert (await other.get_or_run(forged, model.run, mode="use")).cache == "MISS"
    assert model.calls == 2


class Away(LocalStore):
    """A store that fails in every method but `generation`, as Redis does when it is gone."""

    async def get(self, key: bytes) -> bytes | None:
        raise StoreUnavailable("away")

    async def put(self, key: bytes, value: bytes, *, ttl_s: float) -> None:
        raise StoreUnavailable("away")

    async def claim(self, key: bytes, owner: str, *, ttl_s: float) -> bool:
        raise StoreUnavailable("away")

    async def release(self, key: bytes, owner: str) -> None:
        raise StoreUnavailable("away")


class Unsure(Away):
    """A store that does not know the generation: nothing remembered may be trusted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        setattr(self, "generation", self._unknown)  # noqa: B010 - the attribute is a method of the board

    def _unknown(self, counter: str) -> int | None:
        return None


@pytest.mark.parametrize(("store_class", "state"), [(Away, "HIT"), (Unsure, "MISS")])
async def test_a_tier_that_fails_is_a_miss_and_never_an_error(
    tmp_path: Path, store_class: type[LocalStore], state: str
) -> None:
    store = store_class(tmp_path / "shared")
    cache = cache_on(store)
    model = Model()
    model.go.set()
    assert (await asked(cache, model.run)).cache == "MISS"
    assert (await asked(cache, model.run)).cache == state
    await cache.aclose()
    await store.aclose()
