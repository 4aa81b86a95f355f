"""A key whose request another process answers, and one whose process was killed."""

import asyncio
import os
import signal
from typing import Any

import pytest

from tests.siege import Answer, Line
from tests.workers.conftest import PROMPT, House, User

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": (PROMPT, {"message": "nonce:{}", "cache": {"mode": "off"}}),
    "prompt, streamed": (PROMPT, {"message": "nonce:{}", "cache": {"mode": "off"}, "stream": True}),
    "chat": (CHAT, {"model": "default", "messages": [{"role": "user", "content": "nonce:{}"}]}),
    "chat, streamed": (
        CHAT,
        {"model": "default", "messages": [{"role": "user", "content": "nonce:{}"}], "stream": True},
    ),
    "responses": (RESPONSES, {"model": "default", "input": "nonce:{}"}),
    "responses, streamed": (RESPONSES, {"model": "default", "input": "nonce:{}", "stream": True}),
}


async def ask(line: Line, user: User, route: str, key: str) -> Answer:
    path, body = ROUTES[route]
    return await line.ask("POST", path, body, Idempotency_Key=key, **user.headers)


async def until_asked(house: House, before: int) -> None:
    async with asyncio.timeout(20):
        while house.provider.stats()["calls"] == before:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("route", ["prompt", "prompt, streamed"])
async def test_another_process_joins_the_run_and_gives_its_answer_again(house: House, route: str) -> None:
    user = house.user()
    before = house.provider.stats()["calls"]
    async with house.lines() as lines:
        house.provider.control(latency_s=0.5)
        try:
            first, joined = await asyncio.gather(*(ask(line, user, route, "key") for line in lines))
        finally:
            house.provider.control(latency_s=0)
        again = [await ask(line, user, route, "key") for line in lines]
    assert {answer.status for answer in (first, joined, *again)} == {200}
    assert {answer.body for answer in (first, joined, *again)} == {first.body}
    replayed = [answer.headers.get("idempotent-replayed") == "true" for answer in (first, joined, *again)]
    assert sorted(replayed) == [False, True, True, True]
    assert house.provider.stats()["calls"] == before + 1


@pytest.mark.soak
@pytest.mark.parametrize("route", ROUTES)
async def test_a_key_whose_worker_was_killed_is_answered_by_another_when_its_lease_ends(
    house: House, route: str
) -> None:
    if house.has_redis:
        pytest.skip("a replica that is killed does not come back by itself")
    user = house.user()
    before = house.provider.stats()["calls"]
    async with house.lines() as (line, other):
        house.provider.control(latency_s=60)
        try:
            running = asyncio.create_task(ask(line, user, route, "key"))
            await until_asked(house, before)
            os.kill(line.worker, signal.SIGKILL)
            with pytest.raises((OSError, EOFError)):
                await running
        finally:
            house.provider.control(latency_s=0)
        answer = await ask(other, user, route, "key")
        again = await ask(other, user, route, "key")
    assert (answer.status, answer.headers.get("idempotent-replayed")) == (200, None)
    assert (again.body, again.headers["idempotent-replayed"]) == (answer.body, "true")
    assert house.provider.stats()["calls"] == before + 2
