"""The agents in `examples/`, through HTTP against the fake provider."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
async def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Application]:
    async with FakeProvider() as fake:
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        async with open_application(
            tmp_path / "data", agents_dir=EXAMPLES, agents=("examples.shop:shop",), default_model="openai-chat:fake"
        ) as opened:
            yield opened


async def test_a_prompt_only_agent_answers_with_text(application: Application) -> None:
    reply = await application.prompt("nonce:h1", agent="haiku")
    assert reply.status_code == 200
    assert "nonce:h1" in reply.json()["response"]


async def test_an_agent_with_an_output_schema_answers_with_an_object(application: Application) -> None:
    reply = await application.prompt("nonce:t1", agent="ticket")
    assert reply.status_code == 200
    assert reply.json()["response"]["priority"] == "low"
    assert "nonce:t1" in reply.json()["response"]["subject"]


async def test_tools_run_with_the_dependencies_of_the_caller(application: Application) -> None:
    reply = await application.prompt(
        'call:pieces_left {"article": "lamp"} call:price_with_tax {"price": 100}', agent="shop"
    )
    body = reply.json()
    assert reply.status_code == 200
    assert "3 pieces of lamp for admin" in body["response"]
    assert "119" in body["response"]
    assert body["usage"]["requests"] == 2


async def test_the_agents_are_listed_with_what_they_are(application: Application) -> None:
    listed = (await application.client.get("/api/v1/agents")).json()
    assert [agent["name"] for agent in listed] == ["default", "haiku", "shop", "ticket"]
    assert listed[1]["cache"] == {"enabled": True, "scope": "shared", "ttl": 600}
    shop = (await application.client.get("/api/v1/agents/shop")).json()
    assert {tool["name"]: tool["effect"] for tool in shop["tools"]} == {"price_with_tax": "pure", "pieces_left": "read"}
    assert len(shop["revision"]) == 16
    assert (await application.client.get("/api/v1/agents/nobody")).status_code == 404
    assert (await application.anonymous.get("/api/v1/agents")).status_code == 401
    assert shop["tier"] == "graph"
    haiku = (await application.client.get("/api/v1/agents/haiku")).json()
    assert haiku["tier"] == "direct", haiku["tier_reason"]


async def test_a_file_agent_is_answered_from_memory_the_second_time(application: Application) -> None:
    first, again = [await application.prompt("nonce:c1", agent="haiku") for _ in range(2)]
    assert (first.json()["cached"], again.json()["cached"]) == (False, True)
    assert again.json()["response"] == first.json()["response"]
