"""A client that leaves ends the provider's work, on every route and in every form of an answer."""

import asyncio
from typing import Any

import httpx2
import psutil
import pytest

from tests.wire.conftest import MODEL_TIMEOUT_S, Wire

MUST_END_S = 1.5
"""Below the server's own deadline for a model, or the tests would prove nothing."""
assert MUST_END_S < MODEL_TIMEOUT_S


def body_for(path: str, message: str) -> dict[str, Any]:
    match path:
        case "/v1/chat/completions":
            return {"model": "default", "messages": [{"role": "user", "content": message}]}
        case "/v1/responses":
            return {"model": "default", "input": message}
        case _:
            return {"message": message}


PATHS = ("/api/v1/agent/prompt", "/v1/chat/completions", "/v1/responses")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("path", PATHS)
async def test_whoever_leaves_ends_the_providers_work(wire: Wire, path: str, *, streamed: bool) -> None:
    process = psutil.Process(wire.server.process.pid)
    before = wire.provider.stats()
    in_use = pool_of(wire)["in_use"]
    files = process.num_fds()
    body = body_for(path, f"fault:hang {path} {streamed}") | {"stream": streamed}
    async with httpx2.AsyncClient(base_url=wire.server.url, headers={"Authorization": f"Bearer {wire.key}"}) as client:
        asking = asyncio.create_task(client.post(path, json=body, timeout=30))
        await asyncio.to_thread(wire.provider.wait_until, lambda stats: stats["in_flight"] == before["in_flight"] + 1)
        assert pool_of(wire)["in_use"] == in_use + 1, "the control"
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.to_thread(
            wire.provider.wait_until,
            lambda stats: stats["in_flight"] == before["in_flight"] and stats["disconnects"] > before["disconnects"],
            timeout_s=MUST_END_S,
        )
    async with asyncio.timeout(10):
        # Another connection to the provider may have been kept for later.
        while pool_of(wire)["in_use"] > in_use or process.num_fds() > files + 1:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("path", PATHS)
async def test_whoever_leaves_takes_nothing_from_those_who_wait(wire: Wire, path: str) -> None:
    nonce = f"nonce:shared-{PATHS.index(path)}"
    body = body_for(path, nonce)
    before = wire.provider.stats()
    wire.provider.control(latency_s=1.0)
    try:
        async with httpx2.AsyncClient(
            base_url=wire.server.url, headers={"Authorization": f"Bearer {wire.key}"}
        ) as client:
            leaving, staying = (asyncio.create_task(client.post(path, json=body, timeout=30)) for _ in range(2))
            while requests_in_flight(wire) < 3 and not staying.done():  # the two, and the one that looks
                await asyncio.sleep(0.02)
            leaving.cancel()
            reply = await staying
    finally:
        wire.provider.control(latency_s=0)
    after = wire.provider.stats()
    assert nonce in reply.text
    assert (after["calls"], after["disconnects"]) == (before["calls"] + 1, before["disconnects"])


def pool_of(wire: Wire) -> dict[str, Any]:
    return wire.server.get("/api/v1/performance/agent-pool").json()


def requests_in_flight(wire: Wire) -> int:
    return wire.server.get("/api/v1/performance/metrics").json()["requests"]["in_flight"]
