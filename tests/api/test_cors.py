"""What pages from other origins may do and read."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tests.application import Application, open_application

ORIGIN = "https://chat.example.org"
READABLE_ANYWAY = {"cache-control", "content-language", "content-length", "content-type", "expires", "last-modified"}
OF_THE_BROWSER = {
    *("content-encoding", "content-security-policy", "cross-origin-opener-policy", "cross-origin-resource-policy"),
    *("permissions-policy", "referrer-policy", "strict-transport-security", "vary", "x-content-type-options"),
    *("x-frame-options", "www-authenticate", "access-control-allow-origin", "access-control-expose-headers"),
}


@pytest.fixture
async def application(tmp_path: Path) -> AsyncIterator[Application]:
    async with open_application(tmp_path / "data", allowed_origins=[ORIGIN], rate_limit_per_minute=4) as opened:
        yield opened


def unreadable(reply: httpx2.Response) -> set[str]:
    exposed = {name.strip().lower() for name in reply.headers["access-control-expose-headers"].split(",")}
    return set(reply.headers) - exposed - READABLE_ANYWAY - OF_THE_BROWSER


async def test_a_page_may_read_every_header_of_ours(application: Application) -> None:
    async def ask(**headers: str) -> httpx2.Response:
        body = {"message": "Hello"}
        return await application.client.post("/api/v1/agent/prompt", json=body, headers={"Origin": ORIGIN, **headers})

    replies = [
        await ask(),
        await ask(),
        await ask(**{"Idempotency-Key": "one"}),
        await ask(**{"Idempotency-Key": "one"}),
        await ask(),
        await ask(),
    ]
    assert [reply.status_code for reply in replies] == [200] * 5 + [429]
    assert {"age", "x-ratelimit-reset-requests"} <= set(replies[1].headers)
    assert "idempotent-replayed" in replies[3].headers
    assert {"retry-after", "retry-after-ms"} <= set(replies[5].headers)
    assert [unreadable(reply) for reply in replies] == [set()] * 6


async def test_a_page_may_send_what_the_contract_names(application: Application) -> None:
    sent = {"authorization", "cache-control", "content-type", "idempotency-key", "x-request-id"}
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ",".join(sorted(sent)),
    }
    reply = await application.anonymous.options("/api/v1/agent/prompt", headers=asked)
    assert reply.status_code == 200
    stranger = await application.anonymous.options(
        "/api/v1/agent/prompt", headers=asked | {"Origin": "https://evil.example"}
    )
    assert "access-control-allow-origin" not in stranger.headers
