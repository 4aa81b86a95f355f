"""`POST /api/v1/agent/prompt`, through the front door."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.db.runs import RunRow, get_run, list_runs
from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application


async def runs_of(application: Application) -> tuple[RunRow, ...]:
    await application.runtime.runs.flush()
    async with application.runtime.database.read() as session:
        return (await list_runs(session, user_id=None)).rows


@pytest.fixture
def provider_key(monkeypatch: pytest.MonkeyPatch) -> str:
    key = "sk-canary-4f1d0c2b9a8e7f6d"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    return key


async def test_a_prompt_is_answered_in_the_contracts_shape(application: Application) -> None:
    reply = await application.prompt("Hello, world!")
    body = reply.json()
    assert reply.status_code == 200
    assert "Hello, world!" in body["response"]
    assert "offline model" in body["response"]
    assert body["agent"] == "default"
    assert body["model"] == "offline"
    assert body["conversation_id"] is None
    assert body["cached"] is False
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]
    assert body["usage"]["requests"] == 1
    assert body["processing_time_ms"] > 0
    assert body.keys() >= {"id", "cost_usd"}


async def test_the_offline_model_answers_the_same_every_time(application: Application) -> None:
    first, second = await application.prompt("again"), await application.prompt("again")
    assert first.json()["response"] == second.json()["response"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_offline_model_answers_in_json_where_that_is_asked_for(
    application: Application, *, streamed: bool
) -> None:
    shape = {"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "required": ["a"]}
    for wanted, told in (
        ({"type": "json_object"}, "offline model"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": shape}}, "a"),
    ):
        body = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "response_format": wanted}
        reply = await application.client.post("/v1/chat/completions", json=body | {"stream": streamed})
        assert (reply.status_code, told in reply.text, "error" in reply.text) == (200, True, False), reply.text
        if not streamed:
            assert isinstance(json.loads(reply.json()["choices"][0]["message"]["content"]), dict)


async def test_a_run_is_recorded_with_who_asked_and_how_it_ended(application: Application) -> None:
    reply = await application.prompt("Hello")
    (row,) = await runs_of(application)
    me = (await application.client.get("/api/v1/auth/me")).json()
    assert row.id == reply.json()["id"]
    assert row.user_id == me["id"]
    assert (row.agent, row.model, row.status, row.cached) == ("default", "offline", "done", False)
    assert row.output_tokens == reply.json()["usage"]["output_tokens"]
    assert row.finished_at is not None
    assert row.started_at <= row.finished_at <= datetime.now(UTC)
    assert row.duration_ms is not None
    assert row.model_ms is not None
    assert 0 < row.model_ms <= row.duration_ms


async def test_the_provider_receives_what_agent_run_would_send(
    tmp_path: Path, provider_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydantic_ai import Agent

    async with FakeProvider() as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        settings = {"temperature": 0.2, "max_tokens": 400}
        async with open_application(tmp_path, default_model="openai-chat:gpt-4o-mini") as application:
            reply = await application.prompt("What is nonce:A1?", model_settings=settings)
        agent = Agent("openai-chat:gpt-4o-mini", name="default")
        async with agent:
            expected = await agent.run("What is nonce:A1?", model_settings={"temperature": 0.2, "max_tokens": 400})
        ours, theirs = fake.requests
    assert reply.status_code == 200
    assert reply.json()["response"] == expected.output
    assert "nonce:A1" in reply.json()["response"]
    assert reply.json()["usage"]["input_tokens"] == expected.usage.input_tokens
    assert ours.body == theirs.body
    assert ours.headers["authorization"] == f"Bearer {provider_key}"


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("401", 502, "provider-failed"),
        ("429", 429, "provider-busy"),
        ("500", 502, "provider-failed"),
        ("bad-json", 502, "provider-failed"),
        ("reset", 502, "provider-failed"),
        ("hang", 504, "provider-timeout"),
    ],
)
async def test_a_provider_failure_is_told_without_its_body(
    fault: str, status: int, code: str, tmp_path: Path, provider_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeProvider() as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        async with open_application(
            tmp_path, default_model="openai-chat:gpt-4o-mini", model_timeout_seconds=1
        ) as application:
            reply = await application.prompt(f"fault:{fault}")
            good = await application.prompt("and now?")
            failed = [row for row in await runs_of(application) if row.status == "failed"]
        calls = fake.calls
    body = reply.json()
    assert (reply.status_code, body["type"]) == (status, f"urn:mnemosine:problem:{code}")
    assert "openai" in body["detail"]
    assert provider_key not in reply.text
    assert ("retry-after" in reply.headers) == (status == 429)
    assert good.status_code == 200
    assert [row.error_code for row in failed] == [code]
    assert calls == 2, "the SDK's own retries are off"


async def test_no_database_connection_is_held_while_the_model_thinks(
    tmp_path: Path, provider_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = 50
    async with FakeProvider() as fake:
        fake.hold()
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        async with open_application(
            tmp_path, default_model="openai-chat:gpt-4o-mini", db_pool_size=5, db_max_overflow=0
        ) as application:
            asked = [asyncio.create_task(application.prompt(f"nonce:{n}")) for n in range(prompts)]
            async with asyncio.timeout(20):
                # The record of runs is written meanwhile, for a moment at a time; a session that is held stays.
                while fake.calls < prompts or application.runtime.database.pool_status().checked_out:
                    await asyncio.sleep(0.01)
            assert not any(task.done() for task in asked), "the control: all models were still thinking"
            fake.release()
            replies = await asyncio.gather(*asked)
    assert [f"nonce:{n}" in reply.json()["response"] for n, reply in enumerate(replies)] == [True] * prompts


async def test_a_caller_who_leaves_is_recorded_as_cancelled(
    tmp_path: Path, provider_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeProvider(latency_s=5) as fake:
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        async with open_application(tmp_path, default_model="openai-chat:gpt-4o-mini") as application:
            asking = asyncio.create_task(application.prompt("never mind"))
            while not fake.calls:
                await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            (row,) = await runs_of(application)
    assert row.status == "cancelled"


async def test_the_run_of_somebody_else_is_not_there(application: Application) -> None:
    run_id = (await application.prompt("mine")).json()["id"]
    await application.runtime.runs.flush()
    async with application.runtime.database.read() as session:
        assert await get_run(session, run_id, user_id="somebody-else") is None
        assert await get_run(session, run_id, user_id=None) is not None


async def test_an_unknown_agent_is_a_404_that_lists_the_known_ones(application: Application) -> None:
    reply = await application.prompt("Hello", agent="nobody")
    assert reply.status_code == 404
    assert "default" in reply.json()["detail"]


async def test_a_model_that_the_operator_does_not_allow_is_refused(application: Application) -> None:
    reply = await application.prompt("Hello", model="openai-chat:gpt-4o-mini")
    assert reply.status_code == 422
    assert reply.json()["errors"][0]["field"] == "model"
