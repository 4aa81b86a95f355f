"""The routes that are found by their path answer as they do behind FastAPI's own."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.api.straight_routes import StraightRoutes
from tests.application import open_application

PROMPT = "/api/v1/agent/prompt"
CHAT = {"model": "default", "messages": [{"role": "user", "content": "hello"}]}
DIFFERING = ("id", "request_id", "created", "created_at", "completed_at", "processing_time_ms")
LIMITS = [f"x-ratelimit-{what}-{of}" for what in ("remaining", "reset") for of in ("requests", "tokens")]
HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}
VARYING = ("x-request-id", "server-timing", "content-length", "date", *LIMITS)


async def _the_long_way(routes: Any, *call: Any) -> None:
    await routes._app(*call)


def the_same(body: Any) -> Any:
    """Without what differs between any two answers."""
    if isinstance(body, dict):
        return {name: the_same(value) for name, value in body.items() if name not in DIFFERING}  # pyright: ignore
    return [the_same(one) for one in body] if isinstance(body, list) else body  # pyright: ignore


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PROMPT, {"message": "hello", "cache": {"mode": "off"}}),
        (PROMPT, {"message": ""}),
        (PROMPT, {"message": "hello", "agent": "nobody"}),
        (PROMPT, {"message": "hello", "unknown": 1}),
        (PROMPT, {"message": "hello", "agent": "nobody", "stream": True}),
        ("/v1/chat/completions", CHAT | {"model": "default", "stream": True, "messages": []}),
        (PROMPT, b"no json"),
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {"model": "nobody", "messages": []}),
        ("/v1/responses", {"model": "default", "input": "hello", "store": False}),
    ],
)
@pytest.mark.parametrize("signed_in", [True, False])
async def test_both_ways_answer_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, signed_in: bool
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with open_application(tmp_path / "data") as application:
        client = application.client if signed_in else application.anonymous
        replies: list[httpx2.Response] = []
        for longer in (False, True):
            if longer:
                monkeypatch.setattr(StraightRoutes, "__call__", _the_long_way)
            replies.append(await client.post(path, content=content, headers=HEADERS))
    straight, long = replies
    assert straight.status_code == long.status_code
    assert {name: straight.headers[name] for name in straight.headers if name not in VARYING} == {
        name: long.headers[name] for name in long.headers if name not in VARYING
    }
    assert the_same(straight.json()) == the_same(long.json())


async def test_the_prompt_takes_the_straight_way_and_a_key_of_idempotency_the_long_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    async with open_application(tmp_path / "data") as application:
        await application.client.post(PROMPT, json={"message": "hello"})
        middleware: Any = application.door.api.middleware_stack
        while not isinstance(middleware, StraightRoutes):
            middleware = getattr(middleware, "app", None) or middleware._app
        behind: Any = getattr(middleware, "_app")  # noqa: B009 - it is nobody else's business

        async def watched(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            await behind(scope, receive, send)

        monkeypatch.setattr(middleware, "_app", watched)
        assert (await application.client.post(PROMPT, json={"message": "hello again"})).status_code == 200
        assert seen == []
        keyed = {"Idempotency-Key": "one"}
        assert (await application.client.post(PROMPT, json={"message": "more"}, headers=keyed)).status_code == 200
        assert seen == [PROMPT]
