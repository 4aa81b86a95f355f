"""A server under mixed load for minutes: hits, misses, cancelled calls, faults, logins, conversations; nothing grows.

asyncio's tasks cannot be counted from outside; threads can, and `test_every_await.py` counts tasks from inside.
The P99 is judged where the machine was ours; CPU time an answer is judged anywhere.
"""

import asyncio
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx2
import psutil
import pytest

from tests.faults.conftest import Figures
from tests.process import ProviderProcess, ServerProcess, providing, serving

PASSWORD = "a password for tests"
DURATION_S = float(os.environ.get("LONG_RUN_S", "600"))
LEFT_OUT_S = min(150.0, DURATION_S / 2)
"""Of the memory's slope: until then caches, histograms and allocators fill."""
MINUTE_S = min(60.0, DURATION_S / 4)
IDLE_S = 32.0
"""Connections to a provider that nobody used for 30 s are closed at the next call."""
OTHERS = 0.1
"""Of the machine; where others use more, wall-clock time says nothing of us."""
CLIENTS = 8
PAUSE_S = 0.02
KINDS = {"hit": 0.5, "cancelled": 0.1, "fault": 0.1, "login": 0.05, "conversation": 0.1, "miss": 0.15}


@dataclass(slots=True)
class Visits:
    """`took` are moments and durations in seconds; `told` counts kinds with their statuses."""

    took: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    told: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])

    def p99_ms(self, start: float) -> float:
        """From `start` for a minute: the median of the P99 of six windows, so that one noisy window decides nothing."""
        width = MINUTE_S / 6
        windows = [[s for at, s in self.took if 0 <= at - start - number * width < width] for number in range(6)]
        return statistics.median(statistics.quantiles(window, n=100)[-1] for window in windows) * 1000


@dataclass(slots=True)
class Visitor:
    """A client of its own, with a conversation that it begins anew every 10 s, since each prompt reads it whole."""

    client: httpx2.AsyncClient
    chance: random.Random
    conversation: str = ""
    until: float = 0.0

    async def visit(self, kind: str) -> int:
        """One request of some kind; gives the status, 0 where the client left."""
        nonce = f"nonce:{kind}-{self.chance.random()}"
        match kind:
            case "hit":
                return await self.ask(message=f"nonce:often-{self.chance.randrange(50)}")
            case "cancelled":
                try:
                    async with asyncio.timeout(0.01):
                        return await self.ask(message=nonce, stream=True)
                except TimeoutError:
                    return 0
            case "fault":
                return await self.ask(message=f"fault:stream-no-finish {nonce}", stream=True)
            case "login":
                form = {"username": "admin", "password": PASSWORD}
                return (await self.client.post("/api/v1/auth/token", data=form)).status_code
            case "conversation":
                if time.monotonic() > self.until:
                    begun = await self.client.post("/api/v1/conversations", json={})
                    self.conversation, self.until = begun.json()["id"], time.monotonic() + 10
                return await self.ask(message=nonce, conversation_id=self.conversation)
            case _:
                return await self.ask(message=nonce)

    async def ask(self, **body: object) -> int:
        return (await self.client.post("/api/v1/agent/prompt", json=body)).status_code

    async def visit_until(self, end: float, visits: Visits) -> None:
        while (now := time.monotonic()) < end:
            [kind] = self.chance.choices([*KINDS], [*KINDS.values()])
            status = await self.visit(kind)
            visits.told[kind, status] += 1
            if status:
                visits.took.append((now, time.monotonic() - now))
            await asyncio.sleep(PAUSE_S)


def visitor(server: ServerProcess, seed: int) -> Visitor:
    client = httpx2.AsyncClient(base_url=server.url, headers=server.headers, timeout=60)
    return Visitor(client, random.Random(seed))


async def fill(server: ServerProcess, process: psutil.Process) -> None:
    """Many at once, several logins among them, until the pools hold all that they will."""
    async with visitor(server, 0).client as client:
        for _ in range(10):
            before = process.num_fds()
            crowd = [Visitor(client, random.Random(number)) for number in range(40)]
            visits: list[Awaitable[int]] = [one.visit("conversation") for one in crowd]
            await asyncio.gather(*visits, *(one.visit("login") for one in crowd[:8]))
            if process.num_fds() <= before:
                return


@dataclass(frozen=True, slots=True)
class Sample:
    """At a moment: the server's resident memory and CPU time, the CPU time of all our processes and of the machine."""

    at: float
    memory_mib: float
    server_s: float
    ours_s: float
    machine_s: float


def sample(process: psutil.Process) -> Sample:
    own = psutil.Process()
    machine = psutil.cpu_times()
    return Sample(
        time.monotonic(),
        process.memory_info().rss / 2**20,
        sum(process.cpu_times()[:2]),
        sum(sum(one.cpu_times()[:2]) for one in [own, *own.children(recursive=True)]),
        machine.user + machine.system,
    )


async def watch(process: psutil.Process, end: float) -> list[Sample]:
    samples: list[Sample] = []
    while time.monotonic() < end:
        samples.append(sample(process))
        await asyncio.sleep(1)
    return samples


@dataclass(frozen=True, slots=True)
class Minute:
    """P99 of all answers, CPU milliseconds of the server for each, and how much of the machine others used."""

    p99_ms: float
    cpu_ms: float
    others: float

    @classmethod
    def of(cls, visits: Visits, samples: list[Sample], start: float) -> Self:
        there = [one for one in samples if start <= one.at < start + MINUTE_S]
        first, last = there[0], there[-1]
        answers = sum(first.at <= at < last.at for at, _ in visits.took)
        others = (last.machine_s - first.machine_s) - (last.ours_s - first.ours_s)
        return cls(
            visits.p99_ms(start),
            (last.server_s - first.server_s) * 1000 / answers,
            others / (last.at - first.at) / (psutil.cpu_count() or 1),
        )


async def at_rest(server: ServerProcess, process: psutil.Process) -> tuple[int, int]:
    """Files and threads when everything that may end by itself has ended."""
    await asyncio.sleep(IDLE_S)
    assert server.prompt(f"nonce:{time.monotonic()}").status_code == 200
    return process.num_fds(), process.num_threads()


def started(server: ServerProcess, provider: ProviderProcess) -> psutil.Process:
    server.wait_for("/readyz")
    server.sign_in(password=PASSWORD)
    assert server.prompt("Hello").status_code == 200
    assert provider.stats()["calls"] == 1
    return psutil.Process(server.process.pid)


@pytest.mark.soak
@pytest.mark.timeout(DURATION_S + 600)
async def test_nothing_grows(tmp_path: Path, figures: Figures) -> None:
    figures.seed = seed = int(time.time())
    with (
        providing("--latency-ms", "5") as provider,
        serving(
            tmp_path,
            ADMIN_PASSWORD=PASSWORD,
            OPENAI_API_KEY="sk-for-tests",
            OPENAI_BASE_URL=provider.base_url,
            DEFAULT_MODEL="openai-chat:gpt-4o-mini",
            RATE_LIMIT_PER_MINUTE="0",
            CACHE_MAX_BYTES="4194304",
            DB_POOL_SIZE="4",  # few enough for `fill`
            LOG_LEVEL="error",
        ) as server,
    ):
        process = started(server, provider)
        await fill(server, process)
        files, threads = await at_rest(server, process)

        began = time.monotonic()
        end = began + DURATION_S
        visits = Visits()
        visitors = [visitor(server, seed + number) for number in range(CLIENTS)]
        watching = asyncio.create_task(watch(process, end))
        await asyncio.gather(*(one.visit_until(end, visits) for one in visitors))
        samples = await watching
        for one in visitors:
            await one.client.aclose()
        files_left, threads_left = await at_rest(server, process)

        warm = [one for one in samples if one.at - began >= LEFT_OUT_S]
        slope = statistics.linear_regression([one.at / 60 for one in warm], [one.memory_mib for one in warm]).slope
        early = Minute.of(visits, samples, began + MINUTE_S)
        late = Minute.of(visits, samples, end - MINUTE_S)
        quiet = max(early.others, late.others) < OTHERS
        load = f"{DURATION_S:g} s of mixed load"
        grown = f"{slope:+.2f} ({warm[0].memory_mib:.0f} to {warm[-1].memory_mib:.0f} MiB)"
        figures.note(load, "memory grows <= 1 MiB a minute", grown)
        figures.note(load, f"files {files} +- 2 afterwards", files_left)
        figures.note(load, f"threads <= {threads} afterwards", threads_left)
        figures.note(load, f"CPU <= 1.5 x {early.cpu_ms:.2f} ms an answer", f"{late.cpu_ms:.2f} ms")
        judged = "" if quiet else f", not judged: others used {early.others:.0%} and {late.others:.0%} of the machine"
        figures.note(load, f"P99 <= 1.2 x {early.p99_ms:.0f} ms", f"{late.p99_ms:.0f} ms{judged}")
        print(f"{len(visits.took)} answers, {dict(visits.told)}, {samples[0].memory_mib:.0f} MiB at first")

        # The control: the load was what it says it is.
        assert {kind for kind, _ in visits.told} == KINDS.keys()
        assert visits.told["cancelled", 0] > visits.told["cancelled", 200] / 10
        assert visits.told["hit", 200] > len(visits.took) / 3
        assert slope <= 1.0
        assert abs(files_left - files) <= 2
        assert threads_left <= threads
        assert late.cpu_ms <= 1.5 * early.cpu_ms
        assert not quiet or late.p99_ms <= 1.2 * early.p99_ms
        assert provider.wait_until(lambda stats: stats["in_flight"] == 0)
