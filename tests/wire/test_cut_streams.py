"""Many streams at once: cut in the middle, and held open."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.process import ProviderProcess, ServerProcess, providing, serving

PASSWORD = "correct horse battery staple"
TLS = httpx2.create_ssl_context()
"""Made once: it costs more than all else that a client does here, and nobody uses it."""


@pytest.fixture
def provider() -> Iterator[ProviderProcess]:
    with providing("--chunk-gap-ms", "10") as started:
        yield started


@pytest.fixture
def server(tmp_path: Path, provider: ProviderProcess) -> Iterator[ServerProcess]:
    with serving(
        tmp_path,
        OPENAI_API_KEY="sk-any",
        OPENAI_BASE_URL=provider.base_url,
        DEFAULT_MODEL="openai-chat:gpt-4o-mini",
        ADMIN_PASSWORD=PASSWORD,
        DB_POOL_SIZE="5",
        DB_MAX_OVERFLOW="0",
        RATE_LIMIT_PER_MINUTE="1000000",
        PROVIDER_MAX_CONCURRENCY="1000",
        LOG_LEVEL="warning",
    ) as started:
        started.wait_for("/readyz")
        started.sign_in(password=PASSWORD)
        yield started


def client_of(server: ServerProcess) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None)
    return httpx2.AsyncClient(base_url=server.url, headers=server.headers, timeout=60, limits=limits, verify=TLS)


@asynccontextmanager
async def streaming(client: httpx2.AsyncClient, message: str) -> AsyncGenerator[httpx2.Response]:
    body = {"model": "default", "messages": [{"role": "user", "content": message}], "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        yield reply


async def cut_streams(server: ServerProcess, provider: ProviderProcess, numbers: range, *, at_once: int = 100) -> None:
    """Every client has a connection of its own, and closes it in the middle of its answer."""

    async def ask_and_leave(number: int) -> None:
        async with client_of(server) as client, streaming(client, f"nonce:cut-{number}") as reply:
            async for line in reply.aiter_lines():
                if '"content":"' in line and '"content":""' not in line:
                    return

    # So slow that even on a busy machine everybody leaves before the end.
    provider.control(chunk_gap_s=1.0)
    before = provider.stats()["disconnects"]
    for first in range(numbers.start, numbers.stop, at_once):
        await asyncio.gather(*map(ask_and_leave, range(first, min(first + at_once, numbers.stop))))
    stats = provider.wait_until(lambda stats: stats["open_streams"] == 0)
    assert stats["disconnects"] - before == len(numbers), "the provider saw every stream cut"
    provider.control(chunk_gap_s=0.01)


async def ask_for_all_of_it(server: ServerProcess, provider: ProviderProcess, numbers: range) -> None:
    """The questions whose answers were cut get whole ones, each from the provider and then from memory."""
    before = provider.stats()["calls"]
    async with client_of(server) as client:
        for number in numbers:
            async with streaming(client, f"nonce:cut-{number}") as reply:
                text = (await reply.aread()).decode()
            assert text.endswith("data: [DONE]\n\n")
            plain = await client.post("/api/v1/agent/prompt", json={"message": f"nonce:cut-{number}"})
            assert plain.json()["response"].endswith("says the fake provider.")
    assert provider.stats()["calls"] - before == len(numbers)


def descriptors(process: psutil.Process) -> int:
    """All but those of the database, whose pool opens another connection where two happen to ask at once."""
    files = [file.path for file in process.open_files()]
    return process.num_fds() - sum("mnemosine.db" in path for path in files)


@pytest.mark.parametrize("cut", [100, pytest.param(1000, marks=pytest.mark.soak)])
async def test_cut_streams_leave_nothing_behind(cut: int, server: ServerProcess, provider: ProviderProcess) -> None:
    process = psutil.Process(server.process.pid)
    # The same traffic before, so that pools, and what is kept for numbers and looks, are as large as they get.
    await cut_streams(server, provider, range(100))
    await ask_for_all_of_it(server, provider, range(20))
    before_fds, before_rss = descriptors(process), process.memory_info().rss
    await cut_streams(server, provider, range(100, 100 + cut))
    await ask_for_all_of_it(server, provider, range(100, 120))
    deadline = time.monotonic() + 10
    while descriptors(process) > before_fds and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert descriptors(process) <= before_fds
    assert process.memory_info().rss <= before_rss * 1.05


async def test_open_streams_hold_no_connection_to_the_database(
    server: ServerProcess, provider: ProviderProcess
) -> None:
    streams = 200
    provider.control(chunk_gap_s=1.0)
    async with client_of(server) as client, AsyncExitStack() as stack:
        opened = await asyncio.gather(
            *(stack.enter_async_context(streaming(client, f"nonce:open-{number}")) for number in range(streams))
        )
        assert len(opened) == streams
        assert provider.stats()["open_streams"] == streams
        metrics = (await client.get("/api/v1/performance/metrics")).json()
        assert metrics["requests"]["in_flight"] >= streams
        assert metrics["database"]["checked_out"] <= 1, "the one that looks"
        me = await client.get("/api/v1/auth/me")
        assert me.status_code == 200
    provider.wait_until(lambda stats: stats["open_streams"] == 0)
