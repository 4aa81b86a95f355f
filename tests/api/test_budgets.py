"""Budgets through the front door: who may still ask, what is charged, and to whom."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.core.run import Caller, Question
from app.db.budgets import Reservation, Spend, book, renewal
from app.errors import LimitExceeded
from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application

TOKENS_A_RUN = 46  # what the fake provider counts: 12 in, 34 out


@pytest.fixture
async def served(
    request: pytest.FixtureRequest, fake: FakeProvider, tmp_path: Path, installed_url: str
) -> AsyncIterator[Application]:
    """An application whose models have a minute, or as many seconds as a test says."""
    async with open_application(
        tmp_path / "data",
        database_url=installed_url,
        default_model="openai-chat:gpt-4o-mini",
        rate_limit_per_minute=0,
        model_timeout_seconds=getattr(request, "param", 60),
    ) as opened:
        yield opened


async def ask(client: httpx2.AsyncClient, message: str, **fields: Any) -> httpx2.Response:
    return await client.post("/api/v1/agent/prompt", json={"message": message, **fields})


async def id_of(client: httpx2.AsyncClient) -> str:
    return (await client.get("/api/v1/auth/me")).json()["id"]


async def give(
    served: Application, user_id: str, amount: float, *, unit: str = "tokens", period: str = "month"
) -> None:
    body = {"period": period, "unit": unit, "amount": amount}
    reply = await served.client.put(f"/api/v1/users/{user_id}/budget", json=body)
    assert reply.status_code == 200, reply.text


async def state(client: httpx2.AsyncClient) -> dict[str, Any]:
    (budget,) = (await client.get("/api/v1/auth/me/budget")).json()["budgets"]
    return budget


async def test_of_400_at_once_a_budget_for_100_lets_100_run(served: Application, fake: FakeProvider) -> None:
    async with served.user() as ada:
        await give(served, await id_of(ada), 100 * TOKENS_A_RUN)
        fake.latency_s = 0.02
        replies = await asyncio.gather(*(ask(ada, f"nonce:{n}", model_settings={"max_tokens": 34}) for n in range(400)))
        statuses = [reply.status_code for reply in replies]
        assert set(statuses) <= {200, 429}
        assert 90 <= statuses.count(200) <= 101
        assert fake.calls == statuses.count(200)
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert "the budget of this user for the month, 4,600 tokens," in refused.json()["detail"]
        assert "renews at 20" in refused.json()["detail"]
        told = await state(ada)
        assert told["spent"] == fake.calls * TOKENS_A_RUN
        assert told["reserved"] == 0


async def test_over_budget_says_when_it_renews_and_that_trying_again_is_vain(
    served: Application, fake: FakeProvider
) -> None:
    async with served.user() as ada:
        await give(served, await id_of(ada), 40, period="day")
        # The last run may use more than is left, and no second one.
        assert (await ask(ada, "nonce:1")).status_code == 200
        refused = await ask(ada, "nonce:2")
        assert refused.status_code == 429
        assert refused.headers["x-should-retry"] == "false"
        left = renewal("day", datetime.now(UTC)) - datetime.now(UTC)
        assert abs(int(refused.headers["retry-after"]) - left.total_seconds()) < 10
        # What is remembered costs nothing, and is counted as saved.
        assert (await ask(ada, "nonce:1")).headers["x-cache"] == "HIT"
        await served.runtime.runs.flush()
        told = await state(ada)
        assert (told["spent"], told["remaining"]) == (TOKENS_A_RUN, 0)
        assert fake.calls == 1
        # A streamed prompt hears of it before its stream begins.
        prompts = (await served.runtime.agent_room).prompts
        caller = Caller(await id_of(ada), "ada", "user", has_budget=True)
        with pytest.raises(LimitExceeded):
            async with prompts.stream(caller, Question("nonce:3")):
                pytest.fail("it began")
        # Others are not concerned, and a lifted budget is gone at once.
        assert (await served.prompt("nonce:4")).status_code == 200
        assert (await served.client.delete(f"/api/v1/users/{await id_of(ada)}/budget")).status_code == 204
        assert (await ask(ada, "nonce:2")).status_code == 200


async def test_dollars_are_charged_as_answers_say(served: Application) -> None:
    async with served.user() as ada:
        await give(served, await id_of(ada), 5, unit="usd")
        costs = [(await ask(ada, f"nonce:{n}")).json()["cost_usd"] for n in range(3)]
        assert all(costs)
        assert (await state(ada))["spent"] == pytest.approx(sum(costs))


@pytest.mark.parametrize("served", [1], indirect=True)
@pytest.mark.parametrize(("message", "status", "least", "most"), [("fault:500", 502, 0, 0), ("fault:hang", 504, 1, 40)])
async def test_a_failed_run_is_charged_what_it_used(
    served: Application, message: str, status: int, least: int, most: int
) -> None:
    async with served.user() as ada:
        await give(served, await id_of(ada), 10_000)
        assert (await ask(ada, message)).status_code == status
        told = await state(ada)
        assert told["reserved"] == 0
        assert least <= told["spent"] <= most


async def test_a_run_whose_caller_left_gives_back_what_it_reserved(served: Application, fake: FakeProvider) -> None:
    async with served.user() as ada:
        await give(served, await id_of(ada), 10_000)
        fake.hold()
        asked = asyncio.create_task(ask(ada, "nonce:left"))
        async with asyncio.timeout(10):
            while not fake.calls:
                await asyncio.sleep(0.01)
        assert (await state(ada))["reserved"] > 1000
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        async with asyncio.timeout(10):
            while (await state(ada))["reserved"]:
                await asyncio.sleep(0.01)
        assert (await state(ada))["spent"] < 40


async def test_a_key_has_to_fit_into_its_own_budget_and_that_of_its_user(served: Application) -> None:
    async with served.user() as ada:
        made = (await ada.post("/api/v1/auth/api-keys", json={"name": "script"})).json()
        user_id = await id_of(ada)
        path = f"/api/v1/users/{user_id}/api-keys/{made['id']}/budget"
        body = {"period": "day", "unit": "tokens", "amount": 40}
        assert (await served.client.put(path, json=body)).status_code == 200
        assert (await ada.put(path, json=body)).status_code == 403
        async with served.with_credential(made["key"]) as key:
            assert (await ask(key, "nonce:1")).status_code == 200
            refused = await ask(key, "nonce:2")
            assert "the budget of this API key for the day" in refused.json()["detail"]
        assert (await ask(ada, "nonce:2")).status_code == 200
        assert (await served.client.get(f"/api/v1/users/{user_id}/budget")).json() == {"budgets": []}
        await ada.delete(f"/api/v1/auth/api-keys/{made['id']}")
        assert (await served.client.get(path)).status_code == 404


async def test_who_joins_the_run_of_a_caller_without_budget_is_not_refused(fake: FakeProvider, tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "open.yaml").write_text("instructions: Be brief.\nmetadata: {mnemosine: {cache: {scope: shared}}}\n")
    async with (
        open_application(tmp_path / "data", default_model="openai-chat:gpt-4o-mini", agents_dir=agents) as served,
        served.user() as ada,
    ):
        await give(served, await id_of(ada), 0)
        asked = [ask(client, "nonce:same", agent="open") for client in (ada, served.client) for _ in range(10)]
        statuses = [reply.status_code for reply in await asyncio.gather(*asked)]
        assert set(statuses[10:]) == {200}
        assert fake.calls == 1


@pytest.mark.parametrize(
    "body",
    [
        {"period": "week", "unit": "usd", "amount": 1},
        {"period": "day", "unit": "tokens", "amount": 1.5},
        {"period": "day", "unit": "usd", "amount": -1},
        {"period": "day", "unit": "usd", "amount": 10**12},
    ],
)
async def test_what_is_no_budget_is_refused(application: Application, body: dict[str, Any]) -> None:
    user_id = await id_of(application.client)
    assert (await application.client.put(f"/api/v1/users/{user_id}/budget", json=body)).status_code == 422


async def test_reservations_of_the_dead_expire_and_periods_renew(served: Application) -> None:
    user_id = await id_of(served.client)
    owner, now = f"user:{user_id}", datetime.now(UTC)
    await give(served, user_id, 100, period="day")
    spend = Spend(tokens=80)

    async def reserve(name: str, at: datetime) -> bool:
        wish = Reservation(name, (owner,), spend, at + timedelta(minutes=1))
        async with served.runtime.database.write() as session:
            return (await book(session, [wish], {}, now=at))[0] is None

    async def settle(name: str, at: datetime) -> None:
        async with served.runtime.database.write() as session:
            await book(session, [], {name: Spend(tokens=100)}, now=at)

    assert await reserve("a", now)
    assert not await reserve("b", now)
    later = now + timedelta(minutes=2)
    assert await reserve("c", later), "a's worker is dead, and its reservation expired"
    await settle("a", later)
    await settle("a", later)
    assert (await state(served.client))["spent"] == 100, "late, and charged once"
    assert not await reserve("d", later)
    assert await reserve("e", renewal("day", later))


async def test_who_has_no_budget_costs_no_transaction(served: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    await served.prompt("nonce:0")
    monkeypatch.setattr(served.runtime.budgets, "_wake", None)
    assert (await served.prompt("nonce:1")).status_code == 200
