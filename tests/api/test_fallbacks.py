"""Agents with fallbacks: who answered is told everywhere, and the answer of a stand-in is nobody else's."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application

OWN, STAND_IN = "openai-chat:gpt-4o-mini", "ollama:llama3"


@asynccontextmanager
async def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[tuple[Application, FakeProvider, FakeProvider]]:
    """An agent `a` on the first provider with the second one behind it."""
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "a.yaml").write_text(f"model: {OWN}\nmetadata: {{mnemosine: {{fallbacks: ['{STAND_IN}']}}}}\n")
    async with FakeProvider() as own, FakeProvider() as stand_in:
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        monkeypatch.setenv("OPENAI_BASE_URL", own.base_url)
        monkeypatch.setenv("OLLAMA_BASE_URL", stand_in.base_url)
        async with open_application(tmp_path / "data", agents_dir=agents) as application:
            yield application, own, stand_in


async def attempts_of(application: Application, request_id: str) -> list[tuple[str, str]]:
    told = (await application.client.get(f"/api/v1/performance/requests/{request_id}")).json()
    return [(one["model"], one["outcome"]) for one in told["attempts"]]


async def providers_of(application: Application) -> set[tuple[str, str]]:
    """Provider and model of every run that the metrics count as good."""
    lines = (await application.client.get("/metrics")).text.splitlines()
    good = [line for line in lines if "model_calls" in line and 'outcome="ok"' in line]
    return {(line.split('provider="')[1].split('"')[0], line.split('model="')[1].split('"')[0]) for line in good}


async def test_who_answered_is_told_and_the_answer_is_not_the_own_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, monkeypatch) as (application, own, stand_in):
        own.fault = "401"
        reply = await application.prompt("hello", agent="a")
        assert reply.status_code == 200
        assert reply.json()["model"] == STAND_IN
        assert await attempts_of(application, reply.headers["x-request-id"]) == [(OWN, "status 401"), (STAND_IN, "ok")]
        assert await providers_of(application) == {("ollama", STAND_IN)}
        own.fault = None
        again = await application.prompt("hello", agent="a")
        assert (again.headers["x-cache"], again.json()["model"]) == ("MISS", OWN)
        assert (await application.prompt("hello", agent="a")).headers["x-cache"] == "HIT"
        assert await providers_of(application) == {("ollama", STAND_IN), ("openai", OWN)}
    assert (own.calls, stand_in.calls) == (2, 1)


async def test_a_stream_ends_with_who_answered_and_is_not_kept_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, monkeypatch) as (application, own, _):
        own.fault = "401"
        reply = await application.prompt("hello", agent="a", stream=True)
        done = [line for line in reply.text.splitlines() if line.startswith("data:")][-1]
        told: dict[str, Any] = json.loads(done.removeprefix("data:"))
        assert told["model"] == STAND_IN
        own.fault = None
        assert (await application.prompt("hello", agent="a")).headers["x-cache"] == "MISS"


async def test_where_all_fail_the_first_one_is_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, monkeypatch) as (application, own, stand_in):
        own.fault, stand_in.fault = "429", "401"
        reply = await application.prompt("hello", agent="a")
        assert reply.status_code == 429
        assert "openai" in reply.json()["detail"]
        tried = await attempts_of(application, reply.headers["x-request-id"])
        assert tried[-1] == (STAND_IN, "status 401")
    assert own.calls == 2, "one retry"
    assert stand_in.calls == 1


async def test_an_open_circuit_is_passed_without_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, monkeypatch) as (application, own, stand_in):
        own.fault = "500"
        for number in range(8):
            assert (await application.prompt(f"nonce:{number}", agent="a")).json()["model"] == STAND_IN
        asked = own.calls
        reply = await application.prompt("once more", agent="a")
        assert await attempts_of(application, reply.headers["x-request-id"]) == [
            (OWN, "circuit open"),
            (STAND_IN, "ok"),
        ]
        assert own.calls == asked
    assert stand_in.calls == 9
