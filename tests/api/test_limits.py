"""Rate limits through the front door: who is refused, and what every answer says of the limit."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.application import Application, open_application


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[Application]:
    async with open_application(tmp_path / "data", rate_limit_per_minute=10) as opened:
        yield opened


async def test_every_answer_tells_what_is_left(limited: Application) -> None:
    first, again = await limited.prompt("Hi"), await limited.prompt("Hi")
    assert again.headers["x-cache"] == "HIT"
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in (first, again)] == ["9", "8"]
    bad = await limited.client.post("/api/v1/agent/prompt", json={"message": "Hi", "agent": "nobody"})
    assert (bad.status_code, bad.headers["x-ratelimit-remaining-requests"]) == (404, "7")
    assert first.headers["x-ratelimit-limit-requests"] == "10"
    assert re.fullmatch(r"6s", first.headers["x-ratelimit-reset-requests"])
    assert "retry-after" not in first.headers


async def test_of_40_at_once_10_are_answered_and_30_are_told_when_to_come_back(limited: Application) -> None:
    replies = await asyncio.gather(*(limited.prompt(f"nonce {number}") for number in range(40)))
    statuses = [reply.status_code for reply in replies]
    assert (statuses.count(200), statuses.count(429)) == (10, 30)
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["type"] == "urn:mnemosine:problem:limit-exceeded"
    assert "10 prompts a minute" in refused.json()["detail"]
    assert refused.headers["retry-after"] == "6"
    assert 5000 < int(refused.headers["retry-after-ms"]) <= 6000
    assert (refused.headers["x-ratelimit-limit-requests"], refused.headers["x-ratelimit-remaining-requests"]) == (
        "10",
        "0",
    )
    assert refused.headers["x-ratelimit-reset-requests"] in ("60s", "1m0s")
    assert limited.runtime.metrics.snapshot().count("limit_refusals", group="prompts", limit="requests") == 30


async def test_other_requests_count_in_a_wider_limit(limited: Application) -> None:
    await asyncio.gather(*(limited.prompt("Hi") for _ in range(11)))
    me = await limited.client.get("/api/v1/auth/me")
    assert (me.status_code, me.headers["x-ratelimit-limit-requests"]) == (200, "600")
    assert "x-ratelimit-limit-requests" not in (await limited.client.get("/livez")).headers


async def test_zero_switches_the_limit_off(tmp_path: Path) -> None:
    async with open_application(tmp_path / "data", rate_limit_per_minute=0) as unlimited:
        reply = await unlimited.prompt("Hi")
        assert reply.status_code == 200
        assert not [name for name in reply.headers if name.startswith("x-ratelimit")]
