"""A key whose request another process answers, and one whose process was killed."""

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from tests.figures import Figures
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
    # A question of its own, so that nobody joins the run of another route.
    asked = json.loads(json.dumps(body).replace("{}", name_of(route)))
    return await line.ask("POST", path, asked, Idempotency_Key=key, **user.headers)


def name_of(route: str) -> str:
    return route.replace(", ", "-")


async def until_asked(house: House, before: int, times: int) -> None:
    async with asyncio.timeout(30):
        while house.provider.stats()["calls"] < before + times:
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
async def test_keys_whose_worker_was_killed_are_answered_by_another_when_their_lease_ends(
    house: House, figures: Figures
) -> None:
    """All routes at once: each has a key of its own, and all wait for their leases together."""
    if house.has_redis:
        pytest.skip("a replica that is killed does not come back by itself")
    user = house.user()
    before = house.provider.stats()["calls"]
    async with house.bundles(len(ROUTES)) as (mine, others):
        house.provider.control(latency_s=60)
        try:
            running = [
                asyncio.create_task(ask(line, user, route, name_of(route)))
                for line, route in zip(mine, ROUTES, strict=True)
            ]
            await until_asked(house, before, len(ROUTES))
            os.kill(mine[0].worker, signal.SIGKILL)
            ended = await asyncio.gather(*running, return_exceptions=True)
        finally:
            house.provider.control(latency_s=0)

        async def ask_twice(line: Line, route: str) -> tuple[Answer, Answer]:
            return await ask(line, user, route, name_of(route)), await ask(line, user, route, name_of(route))

        answers = await asyncio.gather(*(ask_twice(*pair) for pair in zip(others, ROUTES, strict=True)))
    calls = house.provider.stats()["calls"] - before
    whole = sum(answer.status == 200 and again.body == answer.body for answer, again in answers)
    figures.note(
        f"a worker killed under {len(ROUTES)} keys", "each run again, once, and kept", f"{whole}, {calls} calls"
    )
    assert all(isinstance(end, OSError | EOFError) for end in ended), ended
    for answer, again in answers:
        assert (answer.status, answer.headers.get("idempotent-replayed")) == (200, None)
        assert (again.body, again.headers["idempotent-replayed"]) == (answer.body, "true")
    assert calls == 2 * len(ROUTES)
