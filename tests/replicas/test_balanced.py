"""Two replicas behind nginx with our own configuration: one is killed, both are replaced, and nobody else notices."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator

import pytest

from tests.replicas.conftest import Replica, Replicas
from tests.servers import NginxServer, ServerMissing, nginx_binary
from tests.siege import Book, post, siege

try:
    nginx_binary()
except ServerMissing as reason:
    pytestmark = pytest.mark.skip(str(reason))

CLIENTS = 10
LATENCY_S = 0.2


@pytest.fixture(scope="module")
def nginx(_replicas: Replicas) -> Iterator[NginxServer]:
    one, two = _replicas.replicas
    with NginxServer((one.port, two.port)) as server:
        yield server


@pytest.fixture(autouse=True)
def slow_model(replicas: Replicas) -> None:
    replicas.provider.control(latency_s=LATENCY_S)


def request(replicas: Replicas, *, stream: bool = False) -> bytes:
    """A prompt that reaches the model."""
    body = json.dumps({"message": "say it", "stream": stream, "cache": {"mode": "off"}}).encode()
    return post("/api/v1/agent/prompt", body, **replicas.headers)


def is_done(body: bytes) -> bool:
    return b"event: done" in body


async def answers(book: Book, count: int) -> None:
    async with asyncio.timeout(60):
        while book.statuses[200] < count:
            await asyncio.sleep(0.01)


async def test_a_killed_replica_costs_what_was_in_flight_on_it(replicas: Replicas, nginx: NginxServer) -> None:
    victim = replicas.replicas[1]
    async with siege(nginx.url, request(replicas), clients=CLIENTS, keep_alive=True) as book:
        await answers(book, 4 * CLIENTS)
        killed_at = time.time()
        victim.server.process.kill()
        await answers(book, book.statuses[200] + 8 * CLIENTS)
    # What had begun to be answered ends in its middle, the rest of what was in flight is a 502.
    assert set(book.statuses) <= {200, 502}
    assert 1 <= book.statuses[502] + len(book.lost) <= CLIENTS, "the control: it was to have something in flight"
    failed = [asked for asked in nginx.requests() if asked.status != 200]
    assert len(failed) == book.statuses[502]
    for asked in failed:
        assert asked.upstreams == f"127.0.0.1:{victim.port}"
        # Sent before the kill, or into a connection that the kernel had not closed yet.
        assert asked.ended_at - asked.took_s <= killed_at + 0.5


async def restart(replica: Replica, nginx: NginxServer) -> None:
    """End it in order, start it again, and wait until nginx counts on it again: only then may the next one end."""
    replica.server.process.send_signal(signal.SIGTERM)
    status = await asyncio.to_thread(replica.server.process.wait, 40)
    assert status == 0, replica.server.output()
    await asyncio.to_thread(replica.end)
    replica.start()
    await asyncio.to_thread(replica.server.wait_for, "/readyz")
    ready_at = time.time()
    async with asyncio.timeout(30):
        while not any(
            asked.upstreams == f"127.0.0.1:{replica.port}" and asked.ended_at - asked.took_s > ready_at
            for asked in nginx.requests()
        ):
            await asyncio.sleep(0.05)


async def test_restarting_one_after_the_other_loses_nothing(replicas: Replicas, nginx: NginxServer) -> None:
    pids = [server.process.pid for server in replicas.servers]
    async with (
        siege(nginx.url, request(replicas), clients=CLIENTS, keep_alive=True) as plain,
        siege(nginx.url, request(replicas, stream=True), clients=CLIENTS // 2, is_whole=is_done) as streams,
    ):
        await answers(plain, 2 * CLIENTS)
        for replica in replicas.replicas:
            await restart(replica, nginx)
        await answers(plain, plain.statuses[200] + 2 * CLIENTS)
    assert plain.lost == streams.lost == []
    assert set(plain.statuses) == set(streams.statuses) == {200}
    assert not set(pids).intersection(server.process.pid for server in replicas.servers)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_throughput_is_back_within_five_seconds_of_ten_kills(replicas: Replicas, nginx: NginxServer) -> None:
    for number in range(10):
        victim = replicas.replicas[number % 2]
        async with siege(nginx.url, request(replicas), clients=2 * CLIENTS, keep_alive=True) as book:
            await answers(book, 4 * CLIENTS)
            began, before = time.monotonic(), book.statuses[200]
            await asyncio.sleep(3)
            rate = (book.statuses[200] - before) / (time.monotonic() - began)
            victim.server.process.kill()
            killed, rates = time.monotonic(), list[float]()
            while not rates or rates[-1] < 0.8 * rate:
                began, before = time.monotonic(), book.statuses[200]
                await asyncio.sleep(0.5)
                rates.append((book.statuses[200] - before) / (time.monotonic() - began))
                assert time.monotonic() - killed < 5, rates
            took_s = time.monotonic() - killed
        print(f"round {number}: {rate:.0f}/s before, {rates[-1]:.0f}/s again {took_s:.1f} s after the kill, {book}")
        assert set(book.statuses) <= {200, 502}
        assert book.statuses[502] + len(book.lost) <= 2 * CLIENTS
        await asyncio.to_thread(replicas.heal)
        replicas.provider.control(latency_s=LATENCY_S)
