"""A Redis that freezes, dies, cuts and lies: bounded waits, `StoreUnavailable` at worst, never a wrong value."""

import asyncio
import logging
import random
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Literal

import pytest

from app.errors import BadConfiguration, StoreUnavailable
from app.stores.redis import RedisStore
from tests.fault_proxy import FaultProxy
from tests.figures import Figures
from tests.servers import RedisServer

SEED = 20261125


@asynccontextmanager
async def opened(url: str, connections: int = 64) -> AsyncGenerator[RedisStore]:
    store = RedisStore(url, connections=connections)
    await store.start()
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def proxied(url: str, connections: int = 64) -> AsyncGenerator[tuple[RedisStore, FaultProxy]]:
    host, port = url.split("/")[2].split(":")
    async with (
        FaultProxy(host, int(port), seed=SEED) as proxy,
        opened(url.replace(port, str(proxy.port)), connections) as store,
    ):
        yield store, proxy


async def until(true: Callable[[], bool], *, within_s: float = 10.0) -> None:
    deadline = monotonic() + within_s
    while not true():
        assert monotonic() < deadline, "it never came"
        await asyncio.sleep(0.01)


def spin(seconds: float) -> None:
    """What a request costs its process."""
    until = monotonic() + seconds
    while monotonic() < until:
        pass


def is_up(store: RedisStore) -> Callable[[], bool]:
    return lambda: store.numbers().state == "up"


@pytest.mark.parametrize("query", ["", "?socket_timeout=60&socket_connect_timeout=60&retry_on_timeout=true"])
async def test_frozen_it_costs_little_opens_the_breaker_and_is_found_again(
    redis_url: str, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, query: str
) -> None:
    async with opened(redis_url + query) as store:
        await store.put(b"k", b"v", ttl_s=60)
        redis_server.freeze()
        durations: list[float] = []
        for _ in range(50):
            began = monotonic()
            with pytest.raises(StoreUnavailable):
                await store.get(b"k")
            durations.append(monotonic() - began)
        slow = [duration for duration in durations if duration > 0.05]
        assert len(slow) <= 5
        assert max(durations) <= 3  # the machine may be busy
        assert sorted(durations)[40] < 0.01
        assert store.generation("cache") is None
        assert store.numbers().state == "down"
        assert store.numbers().refused >= 40
        for _ in range(1000):
            with pytest.raises(StoreUnavailable):
                await store.get(b"k")
        redis_server.thaw()
        await until(is_up(store))
        assert await store.get(b"k") == b"v"
    assert len([record for record in caplog.records if "Redis" in record.message]) <= 10


async def test_killed_and_restarted_it_begins_a_new_epoch_and_no_caller_meets_a_dead_connection(
    redis_url: str, redis_server: RedisServer
) -> None:
    async with opened(redis_url) as store:
        await store.bump("cache")
        await until(lambda: store.generation("cache") is not None)
        before = store.generation("cache")
        await asyncio.gather(*(store.put(b"%d" % number, b"v", ttl_s=60) for number in range(20)))
        redis_server.kill()
        for _ in range(10):
            with pytest.raises(StoreUnavailable):
                await store.take(b"m", limit=5, window_s=60)
        redis_server.restart()
        await until(is_up(store))
        assert store.generation("cache") not in (None, before)
        for _ in range(20):
            assert await store.get(b"0") is None
        assert [(await store.take(b"m", limit=5, window_s=60)).allowed for _ in range(6)] == [True] * 5 + [False]


async def test_a_quick_restart_between_two_calls_fails_none(redis_url: str, redis_server: RedisServer) -> None:
    async with opened(redis_url) as store:
        await asyncio.gather(*(store.put(b"%d" % number, b"v", ttl_s=60) for number in range(20)))
        before = store.generation("cache")
        redis_server.restart()
        await until(lambda: store.generation("cache") not in (None, before))
        assert [await store.get(b"%d" % number) for number in range(20)] == [None] * 20
        assert (await store.take(b"m", limit=5, window_s=60)).allowed  # the script is not known there any more


async def test_a_full_redis_that_still_answers_is_not_taken_for_well(redis_url: str, redis_server: RedisServer) -> None:
    redis_server.configure("maxmemory-policy", "noeviction")
    async with opened(redis_url) as store:
        await store.ping()
        redis_server.configure("maxmemory", "1")
        try:
            assert await store.get(b"k") is None
            with pytest.raises(StoreUnavailable, match="its memory is full"):
                await store.ping()
            for _ in range(5):
                with pytest.raises(StoreUnavailable, match="its memory is full"):
                    await store.take(b"m", limit=5, window_s=60)
            assert store.numbers().state == "read-only"
        finally:
            redis_server.configure("maxmemory", "0")
        await until(is_up(store))
        await store.ping()


async def test_other_refusals_of_writes_are_told_apart_from_mistakes(redis_url: str, redis_server: RedisServer) -> None:
    async with opened(redis_url) as store:
        redis_server.configure("min-replicas-to-write", "1")
        try:
            with pytest.raises(StoreUnavailable, match="its replicas are away"):
                await store.ping()
            assert store.numbers().state == "read-only"
        finally:
            redis_server.configure("min-replicas-to-write", "0")
        await until(is_up(store))
        with pytest.raises(StoreUnavailable, match="answered with an error"):
            await store._link.call("HGET", "a")  # pyright: ignore[reportPrivateUsage]
        assert store.numbers().state == "up"


async def test_away_at_the_start_is_one_line_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        FaultProxy("127.0.0.1", 9, mode="refuse") as proxy,
        opened(f"redis://127.0.0.1:{proxy.port}/0") as store,
    ):
        assert store.generation("cache") is None
        with pytest.raises(StoreUnavailable):
            await store.get(b"k")
        async with asyncio.timeout(30):
            while "Redis (REDIS_URL) is away" not in caplog.text:
                await asyncio.sleep(0.01)
    assert len([record for record in caplog.records if "Redis" in record.message]) == 1


@pytest.mark.parametrize("mode", ["cut", "garbage", "half-close", "hang", "blackhole", "refuse", "slice", "latency:20"])
async def test_behind_faults_there_is_the_right_value_or_none(redis_url: str, mode: str) -> None:
    wrong: list[object] = []
    told = away = 0
    async with proxied(redis_url) as (store, proxy):

        async def ask(number: int) -> None:
            nonlocal told, away
            key = b"key %d" % (number % 20)
            try:
                value = await store.get(key)
            except StoreUnavailable:
                away += 1
                return
            told += 1
            if value != b"value of " + key:
                wrong.append(value)

        for number in range(20):
            await store.put(b"key %d" % number, b"value of key %d" % number, ttl_s=60)
        for round_ in range(12):
            proxy.mode = mode if round_ % 2 else "pass"
            await asyncio.gather(*(ask(number) for number in range(40)))
        proxy.mode = "pass"
        await until(is_up(store))
        assert await store.get(b"key 1") == b"value of key 1"
    assert wrong == []
    assert told > 0
    if mode not in ("slice", "latency:20"):
        assert away > 0  # the fault was met


async def test_garbage_is_never_a_verdict_a_lease_or_a_generation(redis_url: str) -> None:
    async with proxied(redis_url) as (store, proxy):
        await store.put(b"k", b"v" * 5000, ttl_s=60)
        assert (await store.take(b"m", limit=10, window_s=3600)).allowed
        assert await store.claim(b"l", "ann", ttl_s=60)
        known = store.generation("cache")
        proxy.mode = "garbage"
        refused = 0
        for _ in range(4):
            for call in (
                store.get(b"k"),
                store.take(b"m", limit=10, window_s=3600),
                store.claim(b"l", "bob", ttl_s=60),
                store.posts("t"),
                store.ping(),
                store.bump("agents"),
            ):
                with pytest.raises(StoreUnavailable):
                    await call
                refused += 1
            assert store.generation("cache") in (known, None)
        assert refused == 24


async def test_to_wait_in_vain_for_a_connection_is_no_outage(redis_url: str) -> None:
    async with proxied(redis_url, connections=2) as (store, proxy):
        proxy.mode = "latency:90"
        told = await asyncio.gather(*(store.get(b"k") for _ in range(30)), return_exceptions=True)
        assert sum(isinstance(one, StoreUnavailable) for one in told) >= 20
        assert told.count(None) >= 2
        proxy.mode = "pass"
        assert await store.get(b"k") is None  # the breaker has stayed closed
        assert store.numbers().refused == 0


async def test_a_burst_in_a_busy_process_is_no_outage(redis_url: str) -> None:
    async with opened(redis_url) as store:

        async def ask() -> bool:
            spin(0.002)
            taken = await store.take(b"m", limit=100, window_s=3600)
            spin(0.002)
            return taken.allowed

        assert sum(await asyncio.gather(*(ask() for _ in range(400)))) == 100
        assert store.numbers().failures == 0


async def test_a_bump_reaches_another_replica_or_that_one_trusts_nothing(redis_url: str) -> None:
    async with proxied(redis_url) as (cut_off, proxy), opened(redis_url) as store:
        await until(lambda: cut_off.generation("credentials") is not None)
        before = cut_off.generation("credentials")
        proxy.mode = "hang"
        began = monotonic()
        await store.bump("credentials")
        assert cut_off.generation("credentials") is None
        assert monotonic() - began < 1 + 0.5
        proxy.mode = "pass"
        await until(lambda: cut_off.generation("credentials") is not None)
        assert cut_off.generation("credentials") == store.generation("credentials") != before


async def test_increments_that_were_lost_begin_a_new_epoch(redis_url: str) -> None:
    async with opened(redis_url) as store:
        await store.bump("cache")
        first = store.generation("cache")
        await store.bump("cache")
        # As if a replica that had not heard of the second had taken over.
        await store._link.call("HSET", "mnemosine:generations", "0", "1")  # pyright: ignore[reportPrivateUsage]
        await until(lambda: store.generation("cache") not in (None, first, (first or 0) + 1))


Ending = Literal["told", "cancelled", "away"]


async def storm(store: RedisStore, *, cancels: int, workers: int = 10) -> dict[str, int]:
    """Ask, cancel at a random moment, and ask for something else at once; count what came."""
    choice = random.Random(SEED)
    counts = {"told": 0, "cancelled": 0, "away": 0, "foreign": 0}

    async def work(worker: int) -> None:
        number = 0
        while counts["cancelled"] < cancels:
            number += 1
            key = b"key %d" % choice.randrange(200)
            asking = asyncio.create_task(store.get(key))
            if number % 2:
                await asyncio.sleep(choice.random() * 0.025)
                asking.cancel()
            try:
                value = await asking
            except asyncio.CancelledError:
                counts["cancelled"] += 1
            except StoreUnavailable:
                counts["away"] += 1
            else:
                counts["told"] += 1
                counts["foreign"] += value != b"nonce of " + key

    for number in range(200):
        await store.put(b"key %d" % number, b"nonce of key %d" % number, ttl_s=600)
    await asyncio.gather(*(work(worker) for worker in range(workers)))
    return counts


@pytest.mark.parametrize("cancels", [500, pytest.param(5000, marks=pytest.mark.soak)])
async def test_a_storm_of_cancellations_brings_nobody_a_foreign_answer(
    redis_url: str, cancels: int, figures: Figures
) -> None:
    async with proxied(redis_url, connections=10) as (store, proxy):
        proxy.mode = "latency:10"
        counts = await storm(store, cancels=cancels)
    figures.seed = SEED
    figures.note(f"{counts['cancelled']} calls of Redis cancelled", "0 foreign answers", counts["foreign"])
    assert counts["foreign"] == 0
    assert counts["told"] > cancels / 2
    assert counts["away"] <= counts["told"] / 10


def test_without_the_driver_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "redis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.delitem(sys.modules, "app.stores.redis")
    monkeypatch.delitem(sys.modules, "app.stores.redis_link")
    with pytest.raises(BadConfiguration, match=r"pip install 'mnemosine\[redis\]'"):
        import app.stores.redis  # noqa: F401 # pyright: ignore[reportUnusedImport]


@pytest.mark.parametrize("url", ["redis://localhost/0?port=x", "redis://localhost/0?no_such_option=1", "redis://h:a/0"])
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(BadConfiguration, match="REDIS_URL"):
        RedisStore(url)


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:  # pyright: ignore[reportUnusedFunction]
    caplog.set_level(logging.INFO)
