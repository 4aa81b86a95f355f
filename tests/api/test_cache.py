"""The response cache, through the front door."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.core.run import Caller, Question
from app.stores.board import Board
from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application


@pytest.fixture
def fake(fake: FakeProvider) -> FakeProvider:
    fake.latency_s = 0.3
    return fake


@pytest.fixture
async def cached(fake: FakeProvider, tmp_path: Path) -> AsyncIterator[Application]:
    async with open_application(tmp_path / "data", default_model="openai-chat:gpt-4o-mini") as opened:
        yield opened


async def test_a_repeated_prompt_is_a_hit_with_the_first_runs_usage(cached: Application, fake: FakeProvider) -> None:
    first, second = await cached.prompt("nonce:A"), await cached.prompt("nonce:A")
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("MISS", "HIT")
    assert first.headers["cache-status"].startswith("mnemosine; fwd=miss; stored; ttl=")
    assert second.headers["cache-status"].startswith("mnemosine; hit; ttl=")
    assert "age" in second.headers
    assert (first.json()["cached"], second.json()["cached"]) == (False, True)
    assert first.json()["id"] != second.json()["id"]
    same = ("response", "usage", "model", "agent", "cost_usd")
    assert [first.json()[name] for name in same] == [second.json()[name] for name in same]
    assert fake.calls == 1


async def test_200_equal_prompts_make_one_model_call(cached: Application, fake: FakeProvider) -> None:
    replies = await asyncio.gather(*(cached.prompt("nonce:herd") for _ in range(200)))
    assert {reply.status_code for reply in replies} == {200}
    assert all("nonce:herd" in reply.json()["response"] for reply in replies)
    assert len({reply.json()["id"] for reply in replies}) == 200
    assert fake.calls == 1


async def waiting_callers(cached: Application, number: int) -> None:
    async with asyncio.timeout(10):
        while cached.runtime.cache.waiting != number:
            await asyncio.sleep(0.01)


async def test_who_joins_a_run_is_told_so_in_the_words_of_http(cached: Application, fake: FakeProvider) -> None:
    fake.hold()
    asked = [asyncio.create_task(cached.prompt("nonce:join")) for _ in range(3)]
    await waiting_callers(cached, 3)
    fake.release()
    replies = await asyncio.gather(*asked)
    first, *joined = sorted(replies, key=lambda reply: reply.headers["x-cache"], reverse=True)
    assert [reply.headers["x-cache"] for reply in (first, *joined)] == ["MISS", "COALESCED", "COALESCED"]
    ttl = first.headers["cache-status"].removeprefix("mnemosine; fwd=miss; stored; ttl=")
    assert 0 < int(ttl) < 10**6
    for reply in joined:
        assert reply.headers["cache-status"] == f"mnemosine; fwd=miss; collapsed; ttl={ttl}"
        assert "age" not in reply.headers


@pytest.mark.parametrize("leaver", [0, 7])
async def test_a_caller_who_leaves_harms_none_of_the_other_49(
    cached: Application, fake: FakeProvider, leaver: int
) -> None:
    fake.hold()
    asked = [asyncio.create_task(cached.prompt("nonce:leave")) for _ in range(50)]
    # Only when all have joined does the leaver leave others behind.
    await waiting_callers(cached, 50)
    asked[leaver].cancel()
    await waiting_callers(cached, 49)
    fake.release()
    replies = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(replies[leaver], asyncio.CancelledError)
    assert sum(not isinstance(reply, BaseException) and reply.status_code == 200 for reply in replies) == 49
    assert fake.calls == 1


async def test_two_users_with_20_equal_prompts_each_share_nothing(cached: Application, fake: FakeProvider) -> None:
    room = await cached.runtime.agent_room
    users = [Caller("1", "one", "user"), Caller("2", "two", "user")]
    answers = await asyncio.gather(*(room.prompts.answer(user, Question("Hi")) for _ in range(20) for user in users))
    assert fake.calls == 2
    assert [answer.cache for answer in answers].count("MISS") == 2
    third = await room.prompts.answer(Caller("3", "three", "user"), Question("Hi"))
    assert third.cache == "MISS"


async def test_a_failure_is_told_and_not_kept(cached: Application, fake: FakeProvider) -> None:
    replies = await asyncio.gather(*(cached.prompt("fault:500") for _ in range(5)))
    assert {reply.status_code for reply in replies} == {502}
    calls = fake.calls
    assert (await cached.prompt("fault:500")).status_code == 502
    assert fake.calls > calls


@pytest.mark.parametrize(
    ("body", "header", "state"),
    [
        ({"cache": {"mode": "refresh"}}, "", "REFRESH"),
        ({"cache": {"mode": "off"}}, "", "BYPASS"),
        ({}, "no-cache", "REFRESH"),
        ({}, "max-age=0, no-store", "BYPASS"),
        ({"model_settings": {"temperature": 0.3}}, "", "MISS"),
    ],
)
async def test_what_the_request_says_about_the_cache_is_obeyed(
    cached: Application, fake: FakeProvider, body: dict[str, object], header: str, state: str
) -> None:
    await cached.prompt("nonce:B")
    reply = await cached.client.post(
        "/api/v1/agent/prompt", json={"message": "nonce:B", **body}, headers={"Cache-Control": header}
    )
    assert reply.headers["x-cache"] == state
    assert fake.calls == 2
    assert (await cached.prompt("nonce:B")).headers["x-cache"] == "HIT"


async def test_clearing_reaches_this_worker_and_a_clear_elsewhere_does_too(cached: Application) -> None:
    await cached.prompt("nonce:C")
    cleared = await cached.client.post("/api/v1/performance/cache/clear")
    assert cleared.json() == {"cleared": 1}
    assert (await cached.prompt("nonce:C")).headers["x-cache"] == "MISS"
    with Board(cached.runtime.settings.data_dir / "shared" / "board") as other_worker:
        other_worker.bump("cache")
    assert (await cached.prompt("nonce:C")).headers["x-cache"] == "MISS"


async def test_what_was_under_way_when_the_cache_was_cleared_is_not_served_later(
    cached: Application, fake: FakeProvider
) -> None:
    asked = asyncio.create_task(cached.prompt("nonce:D"))
    while not fake.calls:
        await asyncio.sleep(0.01)
    await cached.client.post("/api/v1/performance/cache/clear")
    await asked
    assert (await cached.prompt("nonce:D")).headers["x-cache"] == "MISS"


async def test_the_cache_is_counted(cached: Application) -> None:
    for _ in range(3):
        await cached.prompt("nonce:E")
    reply = (await cached.client.get("/api/v1/performance/cache")).json()
    assert (reply["hits"], reply["misses"], reply["stores"], reply["entries"]) == (2, 1, 1, 1)
    assert reply["saved"]["requests"] == 2
    assert reply["saved"]["seconds"] > 0.5
    assert reply["saved_by_agent"]["default"] == reply["saved"]


async def test_nobody_else_clears(cached: Application) -> None:
    assert (await cached.anonymous.post("/api/v1/performance/cache/clear")).status_code == 401
