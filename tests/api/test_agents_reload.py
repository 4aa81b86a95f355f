"""Agents from files through the front door: reloading them, and their fallbacks."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from app.config import load_settings
from app.errors import BadConfiguration
from app.installation import prepare
from benchmarks.fake_provider import FakeProvider
from tests.application import open_application


async def test_a_reload_changes_the_agents_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "a.yaml").write_text("description: old\n")
    async with open_application(tmp_path / "data", agents_dir=agents) as application:
        before = (await application.client.get("/api/v1/agents/a")).json()
        (agents / "a.yaml").write_text("descripton: new\n")
        refused = await application.client.post("/api/v1/agents/reload")
        assert refused.status_code == 409
        assert "a.yaml, line 1" in refused.json()["detail"]
        assert (await application.client.get("/api/v1/agents/a")).json() == before
        (agents / "a.yaml").write_text("description: new\n")
        (agents / "b.yaml").write_text("description: another\n")
        assert (await application.client.post("/api/v1/agents/reload")).json() == {"changed": ["a", "b"]}
        after = (await application.client.get("/api/v1/agents/a")).json()
        assert after["description"] == "new"
        assert after["revision"] != before["revision"]
        (agents / "b.yaml").unlink()
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(5):
            while (await application.client.get("/api/v1/agents/b")).status_code == 200:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("anthropic:claude-haiku-4-5", "pip install 'mnemosine[anthropic]'"),
        ("groq:llama-3.3-70b-versatile", "pip install 'mnemosine[groq]'"),
        ("deepseek:deepseek-chat", "DEEPSEEK_API_KEY is not set"),
        ("nobody:x", "there is no model provider 'nobody'"),
    ],
)
@pytest.mark.parametrize("place", ["model: {}\n", "metadata: {{mnemosine: {{fallbacks: ['{}']}}}}\n"])
async def test_a_reload_takes_no_model_that_a_start_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, model: str, named: str
) -> None:
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    # As if they were not installed, in an environment that may have them.
    for module in ("anthropic", "groq"):
        monkeypatch.setitem(sys.modules, module, None)
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "a.yaml").write_text("description: a\n")
    async with open_application(tmp_path / "data", agents_dir=agents) as application:
        before = (await application.client.get("/api/v1/agents/a")).json()
        (agents / "a.yaml").write_text(place.format(model))
        refused = await application.client.post("/api/v1/agents/reload")
        assert refused.status_code == 409
        assert named in refused.json()["detail"]
        assert (await application.client.get("/api/v1/agents/a")).json() == before
    with pytest.raises(BadConfiguration, match=re.escape(named)):
        await prepare(load_settings(env_file=None, data_dir=tmp_path / "data", agents_dir=agents))


async def test_a_prompt_that_runs_during_a_reload_finishes_on_its_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "a.yaml").write_text("instructions: old\n")
    async with FakeProvider() as fake:
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        async with open_application(
            tmp_path / "data", agents_dir=agents, default_model="openai-chat:fake"
        ) as application:
            fake.hold()
            asked = [asyncio.create_task(application.prompt(f"nonce:{n}", agent="a")) for n in range(10)]
            await fake.until(lambda: fake.calls == 10)
            (agents / "a.yaml").write_text("instructions: new\n")
            assert (await application.client.post("/api/v1/agents/reload")).status_code == 200
            pool = (await application.client.get("/api/v1/performance/agent-pool")).json()
            assert (pool["size"], pool["in_use"]) == (1, 1)
            fake.release()
            replies = await asyncio.gather(*asked)
            assert [reply.status_code for reply in replies] == [200] * 10
            assert all(f"nonce:{n}" in reply.json()["response"] for n, reply in enumerate(replies))
            assert (await application.prompt("x", agent="a")).status_code == 200
            pool = (await application.client.get("/api/v1/performance/agent-pool")).json()
            assert (pool["size"], pool["in_use"], pool["misses"]) == (1, 0, 2)


async def test_a_fallback_answers_where_the_agents_own_model_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "a.yaml").write_text("metadata: {mnemosine: {fallbacks: [offline]}}\n")
    (agents / "b.yaml").write_text("description: the control\n")
    async with FakeProvider(fault="401") as fake:
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        monkeypatch.setenv("OPENAI_BASE_URL", fake.base_url)
        async with open_application(
            tmp_path / "data", agents_dir=agents, default_model="openai-chat:fake"
        ) as application:
            assert "offline model" in (await application.prompt("x", agent="a")).json()["response"]
            assert (await application.prompt("x", agent="b")).status_code == 502
