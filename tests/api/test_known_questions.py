"""The short way and the long way give the same answer, and what outdates one outdates the other."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application

LONG_WAY = {"Origin": "https://elsewhere.example"}
"""The short way leaves this request alone; nothing else changes by it."""


@pytest.fixture
async def application(fake: FakeProvider, tmp_path: Path) -> AsyncIterator[Application]:
    async with open_application(tmp_path / "data", default_model="openai-chat:gpt-4o-mini") as opened:
        yield opened


def known(application: Application) -> int:
    return len(application.door.api.state.known_questions)


async def ask(application: Application, body: dict[str, Any], **headers: str) -> httpx2.Response:
    return await application.client.post("/api/v1/agent/prompt", json=body, headers=headers)


VOLATILE_HEADERS = {
    *("server-timing", "x-request-id", "content-length", "age", "cache-status"),
    *("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
}
"""That they are there is compared; what they say differs from one second, or one request, to the next."""


def shown(reply: httpx2.Response) -> Any:
    body = json.loads(reply.content)
    assert len(body.pop("id")) == 32
    assert body.pop("processing_time_ms") >= 0
    headers = {name: value for name, value in reply.headers.items() if name not in VOLATILE_HEADERS}
    return reply.status_code, list(body.items()), headers, sorted(reply.headers)


@pytest.mark.parametrize(
    "body",
    [
        {"message": "nonce:A"},
        {"message": 'quotes " and \\ and ,"reply":{ and \u2028 and \N{GRINNING FACE}'},
        {"message": "x" * 3000},
        {"message": "nonce:B", "model_settings": {"temperature": 0.25, "max_tokens": 100}},
        {"message": "nonce:C", "agent": "default", "cache": {"mode": "use", "ttl": 60}},
        {"message": "nonce:D", "model": "offline"},
    ],
)
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_both_ways_give_the_same_answer(
    application: Application, fake: FakeProvider, body: dict[str, Any], encoding: str
) -> None:
    first = await ask(application, body)
    assert first.headers["x-cache"] == "MISS"
    assert known(application) == 0
    await ask(application, body)
    assert known(application) == 1
    answered = application.runtime.cache.counts.hits
    short = await ask(application, body, **{"Accept-Encoding": encoding})
    long = await ask(application, body, **{"Accept-Encoding": encoding}, **LONG_WAY)
    assert shown(short) == shown(long)
    assert short.headers["x-cache"] == long.headers["x-cache"] == "HIT"
    assert application.runtime.cache.counts.hits == answered + 2
    assert fake.calls <= 1


async def test_the_control_the_short_way_is_taken(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"message": "nonce:E"}
    for _ in range(2):
        await ask(application, body)

    async def framework(*_: object) -> None:
        raise AssertionError("the framework was asked")

    monkeypatch.setattr(application.door, "_inner", framework)
    assert (await ask(application, body)).headers["x-cache"] == "HIT"
    assert (await ask(application, body, **LONG_WAY)).status_code == 500


async def test_a_clear_a_revocation_and_a_reload_hold_on_the_short_way(
    application: Application, fake: FakeProvider
) -> None:
    body = {"message": "nonce:F"}
    for _ in range(3):
        await ask(application, body)
    assert known(application) == 1
    await application.client.post("/api/v1/performance/cache/clear")
    assert (await ask(application, body)).headers["x-cache"] == "MISS"
    assert (await ask(application, body)).headers["x-cache"] == "HIT"
    await application.client.post("/api/v1/agents/reload")
    assert (await ask(application, body)).headers["x-cache"] == "HIT"
    calls = fake.calls
    await application.client.post("/api/v1/auth/logout")
    assert (await ask(application, body)).status_code == 401
    assert fake.calls == calls


async def test_another_caller_with_the_same_bytes_is_another_question(application: Application) -> None:
    body = {"message": "nonce:G"}
    for _ in range(2):
        await ask(application, body)
    refused = await application.anonymous.post(
        "/api/v1/agent/prompt", json=body, headers={"Authorization": "Bearer not-a-token"}
    )
    assert refused.status_code == 401
    assert known(application) == 1


async def test_hits_of_both_ways_are_counted_for_the_caller_in_the_database(application: Application) -> None:
    from sqlalchemy import select

    from app.db.models import cached_answers

    body = {"message": "nonce:H"}
    await ask(application, body)
    for _ in range(5):
        await ask(application, body)
    await ask(application, body, **LONG_WAY)
    await application.runtime.runs.flush()
    async with application.runtime.database.read() as session:
        rows = (await session.execute(select(cached_answers))).all()
    assert sum(row.answers for row in rows) == 6
    assert {row.agent for row in rows} == {"default"}
    assert sum(row.input_tokens for row in rows) > 0
    metrics = (await application.client.get("/api/v1/performance/metrics")).json()
    (route,) = [route for route in metrics["requests"]["routes"] if route["route"] == "POST /api/v1/agent/prompt"]
    assert route["count"] == 7
