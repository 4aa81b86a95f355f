"""The cache over a Redis that is slow, frozen, killed or talks nonsense: right answers, or the model's."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

import pytest

from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application
from tests.fault_proxy import FaultProxy
from tests.figures import Figures
from tests.servers import RedisServer

pytestmark = pytest.mark.service

HEALTH = "/api/v1/performance/health-detailed"


CALLERS = 8
"""At once, by replica. More would stall the event loop that all parts of this share, and Redis would seem away."""


@asynccontextmanager
async def application_on(data_dir: Path, redis_url: str) -> AsyncGenerator[Application]:
    async with open_application(
        data_dir,
        default_model="openai-chat:gpt-4o-mini",
        redis_url=redis_url,
        rate_limit_per_minute=0,
        provider_max_concurrency=100_000,
        max_requests_in_flight=100_000,
    ) as opened:
        yield opened


@asynccontextmanager
async def through_a_proxy(redis_url: str, mode: str) -> AsyncGenerator[tuple[str, FaultProxy]]:
    parts = urlsplit(redis_url)
    assert parts.hostname
    assert parts.port
    async with FaultProxy(parts.hostname, parts.port, mode=mode) as proxy:
        yield parts._replace(netloc=f"127.0.0.1:{proxy.port}").geturl(), proxy


async def storm(application: Application, *, requests: int, cancels: int, seed: int) -> tuple[int, list[str]]:
    """Ask questions, of which `cancels` are given up and asked again at once; counts right ones, lists foreign ones."""
    chance = random.Random(seed)
    given_up = set(chance.sample(range(requests), cancels))
    right, foreign = 0, list[str]()

    async def caller(numbers: list[int]) -> None:
        nonlocal right
        for number in numbers:
            # Few questions, so that hits, joined runs and misses of one key meet.
            nonce = f"nonce:storm-{number % 50}"
            if number in given_up:
                asked = asyncio.create_task(application.prompt(nonce))
                await asyncio.sleep(chance.uniform(0, 0.03))
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)
            reply = await application.prompt(nonce)
            assert reply.status_code == 200, reply.text
            if f"{nonce} " in reply.json()["response"]:
                right += 1
            else:
                foreign.append(f"{nonce}: {reply.text}")

    await asyncio.gather(*(caller(list(range(start, requests, CALLERS))) for start in range(CALLERS)))
    return right, foreign


@pytest.mark.parametrize("requests", [150, pytest.param(1000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
async def test_a_storm_of_cancellations_brings_nobody_a_foreign_answer(
    fake: FakeProvider, redis_url: str, tmp_path: Path, requests: int, figures: Figures
) -> None:
    # The control with a driver that mixes answers up is in test_redis_storm_control.py.
    fake.latency_s = 0.02
    async with (
        through_a_proxy(redis_url, "latency:10") as (url, _),
        application_on(tmp_path / "one", url) as one,
        application_on(tmp_path / "two", url) as two,
    ):
        found = await asyncio.gather(
            storm(one, requests=requests, cancels=requests // 2, seed=1),
            storm(two, requests=requests, cancels=requests // 2, seed=2),
        )
        figures.seed = 1
        foreign = sum(len(answers) for _, answers in found)
        figures.note(f"{requests} prompts cancelled at two replicas", "0 foreign answers", foreign)
        assert [foreign for _, foreign in found] == [[], []]
        assert sum(right for right, _ in found) == 2 * requests
        for application in (one, two):
            cache = application.runtime.cache
            assert cache.counts.hits > requests // 5, "the control: the storm met kept answers"
            assert cache.shared is not None
            assert cache.shared.failures < requests // 2, "the control: Redis was asked, and answered"


async def test_two_replicas_are_one_cache_and_one_clear(fake: FakeProvider, redis_url: str, tmp_path: Path) -> None:
    async with application_on(tmp_path / "one", redis_url) as one, application_on(tmp_path / "two", redis_url) as two:
        # Two installations have users of their own; what they share needs a shared scope or one database.
        assert (await one.prompt("nonce:R")).headers["x-cache"] == "MISS"
        await hit_again(one, "nonce:R", within_s=10)
        cleared = await two.client.post("/api/v1/performance/cache/clear")
        assert cleared.status_code == 200
        assert (await one.prompt("nonce:R")).headers["x-cache"] == "MISS"


async def took_s(application: Application, message: str) -> float:
    began = perf_counter()
    reply = await application.prompt(message)
    assert reply.status_code == 200, reply.text
    return perf_counter() - began


async def hit_again(application: Application, message: str, *, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while (await application.prompt(message)).headers["x-cache"] != "HIT":
            await asyncio.sleep(0.1)


async def test_a_frozen_redis_costs_five_calls_a_moment_and_then_nothing(
    fake: FakeProvider, redis_url: str, redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with application_on(tmp_path, redis_url) as application:
        await hit_again(application, "nonce:F", within_s=10)
        caplog.clear()
        caplog.set_level(logging.INFO, "app")
        redis_server.freeze()
        waits = [await took_s(application, f"nonce:frozen-{number}") for number in range(60)]
        calls = fake.calls
        redis_server.thaw()
        await hit_again(application, "nonce:F", within_s=10)
    assert calls >= 60
    # Without the breaker each of the 60 would wait for its deadline of 0.25 s; a busy machine stalls a few as well.
    assert sum(wait > 0.25 for wait in waits) <= 10
    lines = [record for record in caplog.records if record.name.startswith("app") and record.name != "app.access"]
    assert len(lines) <= 10


async def test_a_redis_that_is_killed_and_comes_back_empty_fails_no_prompt(
    fake: FakeProvider, redis_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    async with application_on(tmp_path, redis_url) as application:
        await hit_again(application, "nonce:K", within_s=10)
        redis_server.kill()
        for number in range(10):
            await took_s(application, f"nonce:gone-{number}")
        redis_server.restart()
        await hit_again(application, "nonce:K", within_s=10)


async def test_a_full_redis_answers_prompts_and_says_why_it_is_degraded(
    fake: FakeProvider,
    redis_url: str,
    redis_server: RedisServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    why = "Redis takes nothing that is written: its memory is full"
    redis_server.configure("maxmemory-policy", "noeviction")
    async with application_on(tmp_path, redis_url) as application:
        await hit_again(application, "nonce:full", within_s=10)
        await until_store_is(application, "up")
        assert await store_check(application) == ("healthy", None), "the control"
        redis_server.configure("maxmemory", "1")
        try:
            # Nobody asked: what replicas tell each other is not taken.
            await until_store_is(application, "read-only")
            assert await store_check(application) == ("degraded", why)
            assert (await application.anonymous.get(HEALTH)).json()["status"] == "degraded"
            for number in range(20):
                await took_s(application, f"nonce:full-{number % 10}")
            assert (await application.prompt("nonce:full")).headers["x-cache"] == "HIT"
            await until_store_is(application, "read-only")
        finally:
            redis_server.configure("maxmemory", "0")
        await until_store_is(application, "up")
        assert await store_check(application) == ("healthy", None)
    assert fake.calls <= 11, "ten questions and the first one"
    lines = [record.message for record in caplog.records if "Redis" in record.message]
    assert [line.partition(" (")[0] for line in lines] == [why, "Redis takes what is written again"]


async def until_store_is(application: Application, state: str) -> None:
    async with asyncio.timeout(60):
        while (reply := await application.anonymous.get("/readyz")).json()["shared_store"] != state:
            await asyncio.sleep(0.05)
    assert reply.status_code == 200


async def store_check(application: Application) -> tuple[str, str | None]:
    """Status and reason of the check of the store; one that was late on a busy machine is made again."""
    async with asyncio.timeout(60):
        while True:
            check = (await application.anonymous.get(HEALTH)).json()["checks"]["store"]
            if check["reason"] not in ("the shared store does not answer", "Redis does not answer"):
                return check["status"], check["reason"]


@pytest.mark.parametrize("mode", ["cut", "garbage", "half-close", "slice", "latency:50"])
async def test_behind_faults_every_prompt_is_answered_and_none_wrongly(
    fake: FakeProvider, redis_url: str, tmp_path: Path, mode: str
) -> None:
    async with through_a_proxy(redis_url, "pass") as (url, proxy), application_on(tmp_path, url) as application:
        await hit_again(application, "nonce:P", within_s=10)
        proxy.mode = mode
        replies = [await application.prompt(f"nonce:fault-{number % 10}") for number in range(20)]
        assert {reply.status_code for reply in replies} == {200}
        assert all(f"nonce:fault-{n % 10} " in reply.json()["response"] for n, reply in enumerate(replies))
