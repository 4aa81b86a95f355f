"""`Idempotency-Key` on every route that has it, plain and streamed, as clients send it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application

CHAT, RESPONSES, PROMPT = "/v1/chat/completions", "/v1/responses", "/api/v1/agent/prompt"


def body_for(path: str, *, stream: bool, nonce: str) -> dict[str, Any]:
    message = f"nonce:{nonce}"
    bodies: dict[str, dict[str, Any]] = {
        PROMPT: {"message": message},
        CHAT: {"model": "default", "messages": [{"role": "user", "content": message}]},
        RESPONSES: {"model": "default", "input": message},
    }
    return bodies[path] | ({"stream": True} if stream else {})


@pytest.fixture
def fake(fake: FakeProvider) -> FakeProvider:
    fake.chunks = 3
    return fake


@asynccontextmanager
async def started(tmp_path: Path) -> AsyncGenerator[Application]:
    # Without the cache, so that a second run would show.
    model = "openai-chat:gpt-4o-mini"
    async with open_application(tmp_path / "data", default_model=model, cache_enabled=False) as opened:
        yield opened


def is_replay(reply: httpx2.Response) -> bool:
    return reply.headers.get("idempotent-replayed") == "true"


def said(reply: httpx2.Response) -> bytes:
    """What was said; a comment only keeps the connection alive."""
    return reply.content.replace(b":\n\n", b"")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("path", [PROMPT, CHAT, RESPONSES])
async def test_one_run_answers_whoever_asks_meanwhile_later_and_after_a_restart(
    fake: FakeProvider, tmp_path: Path, path: str, stream: bool
) -> None:
    async with started(tmp_path) as application:

        async def ask(client: httpx2.AsyncClient, key: str = "key", nonce: str = "a") -> httpx2.Response:
            body = body_for(path, stream=stream, nonce=nonce)
            return await client.post(path, json=body, headers={"Idempotency-Key": key})

        fake.hold()
        running = asyncio.create_task(ask(application.client))
        await fake.until(lambda: fake.calls == 1)
        joining = [asyncio.create_task(ask(application.client)) for _ in range(5)]
        other = await ask(application.client, nonce="b")
        fake.release()
        first, *joined = await asyncio.gather(running, *joining)
        again = await ask(application.client)
        await ask(application.client, key="another-key")
        assert fake.calls == 2, "the control: another key is another run"
    async with started(tmp_path) as application:
        restarted = await ask(application.client)
        late = await ask(application.client, nonce="b")
    assert first.status_code == 200
    assert b"This answer" in first.content
    assert first.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    assert not is_replay(first)
    for reply in (*joined, again, restarted):
        assert (reply.status_code, is_replay(reply)) == (200, True)
        assert said(reply) == said(first)
        assert reply.headers["content-type"] == first.headers["content-type"]
    for refused in (other, late):
        assert (refused.status_code, refused.headers["x-should-retry"]) == (409, "false")
        assert not is_replay(refused)
        assert ("error" in refused.json()) == path.startswith("/v1/")
    assert fake.calls == 2


@pytest.mark.parametrize("path", [PROMPT, CHAT, RESPONSES])
async def test_a_stream_that_fails_frees_its_key(fake: FakeProvider, tmp_path: Path, path: str) -> None:
    async with started(tmp_path) as application:

        async def ask() -> httpx2.Response:
            body = body_for(path, stream=True, nonce="a")
            return await application.client.post(path, json=body, headers={"Idempotency-Key": "key"})

        fake.chunk_gap_s = 0.001
        fake.fault = "stream-cut"
        cut = await ask()
        fake.fault = None
        whole, again = await ask(), await ask()
    assert cut.status_code == 200, "the control: it had begun"
    assert b"error" in cut.content
    assert not is_replay(whole)
    assert b"error" not in whole.content.replace(b'"error":null', b"")
    assert is_replay(again)
    assert said(again) == said(whole)
