"""Two replicas behind nginx with our own configuration: one is killed, both are replaced, and nobody else notices."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

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
KILL_LATENCY_S = 0.5
"""Of the model where rates are judged: 20 answers a second, which the model makes and no machine is too busy for."""
BACK_WITHIN_S = 5.0
JUDGED_S = 4.0


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


@dataclass(frozen=True, slots=True)
class Kill:
    """A replica that was killed under load; good answers a second before, and from `BACK_WITHIN_S` after it."""

    book: Book
    killed_at: float
    before: float
    after: float
    good: list[float]
    """When each good answer ended."""

    @property
    def is_back(self) -> bool:
        """Whether as many are answered as before, but for a fifth that a busy machine may cost."""
        return self.after >= 0.8 * self.before

    def __str__(self) -> str:
        seconds = [sum(self.killed_at + s <= at < self.killed_at + s + 1 for at in self.good) for s in range(-3, 8)]
        return (
            f"{self.before:.1f}/s before, {self.after:.1f}/s after; each second from 3 s before: {seconds}; {self.book}"
        )


async def kill_under_load(replicas: Replicas, nginx: NginxServer, victim: Replica) -> Kill:
    """SIGKILL to `victim` in the middle of a load that the other one carries with ease, and what came of it."""
    replicas.provider.control(latency_s=KILL_LATENCY_S)
    async with siege(nginx.url, request(replicas), clients=CLIENTS, keep_alive=True) as book:
        await answers(book, 2 * CLIENTS)
        began_at = time.time()
        await asyncio.sleep(JUDGED_S)
        victim.server.process.kill()
        killed_at = time.time()
        await asyncio.sleep(BACK_WITHIN_S + JUDGED_S)
        ended_at = time.time()
    good = [asked.ended_at for asked in nginx.requests() if asked.status == 200]

    def rate(begin: float, end: float) -> float:
        return sum(begin <= at < end for at in good) / (end - begin)

    return Kill(book, killed_at, rate(began_at, killed_at), rate(killed_at + BACK_WITHIN_S, ended_at), good)


async def test_a_killed_replica_costs_what_was_in_flight_on_it(replicas: Replicas, nginx: NginxServer) -> None:
    victim = replicas.replicas[1]
    kill = await kill_under_load(replicas, nginx, victim)
    # What had begun to be answered ends in its middle, the rest of what was in flight is a 502.
    assert set(kill.book.statuses) <= {200, 502}
    assert 1 <= kill.book.statuses[502] + len(kill.book.lost) <= CLIENTS, "the control: something was in flight"
    failed = [asked for asked in nginx.requests() if asked.status != 200]
    assert len(failed) == kill.book.statuses[502]
    for asked in failed:
        assert asked.upstreams == f"127.0.0.1:{victim.port}"
        # Sent before the kill, or into a connection that the kernel had not closed yet.
        assert asked.ended_at - asked.took_s <= kill.killed_at + 0.5
    assert kill.is_back, kill


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
        kill = await kill_under_load(replicas, nginx, replicas.replicas[number % 2])
        print(f"round {number}: {kill}")
        assert kill.is_back
        assert set(kill.book.statuses) <= {200, 502}
        assert kill.book.statuses[502] + len(kill.book.lost) <= CLIENTS
        await asyncio.to_thread(replicas.heal)


@pytest.mark.soak
async def test_the_control_is_not_back_where_nginx_does_not_turn_away(replicas: Replicas) -> None:
    one, two = replicas.replicas
    with NginxServer((one.port, two.port), has_failover=False) as nginx:
        kill = await kill_under_load(replicas, nginx, two)
    print(kill)
    assert not kill.is_back
