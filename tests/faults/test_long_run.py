"""A server under mixed load for minutes: hits, misses, cancelled calls, faults, logins, conversations; nothing grows.

asyncio's tasks cannot be counted from outside; threads can, and `test_every_await.py` counts tasks from inside.
The P99 is judged where the machine was ours in both minutes, and CPU time an answer anywhere. What grows stays large,
and what disturbs passes: where the last minute is slow, up to two more are looked at.
"""

import asyncio
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx2
import psutil
import pytest

from tests.faults.leaking_server import MIB_A_MINUTE
from tests.figures import Figures
from tests.process import ProviderProcess, ServerProcess, providing, serving

PASSWORD = "a password for tests"
DURATION_S = float(os.environ.get("LONG_RUN_S", "600"))
LEFT_OUT_S = min(150.0, DURATION_S / 2)
"""Of the memory's slope: until then caches, histograms and allocators fill."""
MINUTE_S = min(60.0, DURATION_S / 4)
IDLE_S = 32.0
"""Connections to a provider that nobody used for 30 s are closed at the next call."""
OTHERS = 0.1
"""Of the machine; where others use more, or it is kept from us, wall-clock time says nothing of us."""
MINUTES_MORE = 2
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
        machine.user + machine.system + getattr(machine, "steal", 0.0),
    )


async def watch(process: psutil.Process, samples: list[Sample]) -> None:
    while True:
        samples.append(sample(process))
        await asyncio.sleep(1)


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


@dataclass(slots=True)
class Course:
    """How a server did under load: what was sampled meanwhile, and what was open before and afterwards."""

    visits: Visits
    samples: list[Sample]
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    files: tuple[int, int] = (0, 0)
    threads: tuple[int, int] = (0, 0)

    @property
    def warm(self) -> list[Sample]:
        return [one for one in self.samples if one.at - self.began >= LEFT_OUT_S]

    @property
    def mib_a_minute(self) -> float:
        """The slope of the memory, from when caches and histograms are full."""
        return statistics.linear_regression(
            [one.at / 60 for one in self.warm], [one.memory_mib for one in self.warm]
        ).slope

    @property
    def early(self) -> Minute:
        return Minute.of(self.visits, self.samples, self.began + MINUTE_S)

    @property
    def late(self) -> Minute:
        return Minute.of(self.visits, self.samples, self.ended - MINUTE_S)

    @property
    def is_quiet(self) -> bool:
        """Whether nobody else used the machine in the two minutes that are compared."""
        return max(self.early.others, self.late.others) < OTHERS

    @property
    def is_slower(self) -> bool:
        return self.is_quiet and self.late.p99_ms > 1.2 * self.early.p99_ms

    def complaints(self) -> list[str]:
        """What grew."""
        found = {
            f"memory: {self.mib_a_minute:+.2f} MiB a minute": self.mib_a_minute > 1.0,
            f"files: {self.files}": abs(self.files[1] - self.files[0]) > 2,
            f"threads: {self.threads}": self.threads[1] > self.threads[0],
            f"CPU: {self.early} and {self.late}": self.late.cpu_ms > 1.5 * self.early.cpu_ms,
            f"P99: {self.early} and {self.late}": self.is_slower,
        }
        return [what for what, has_grown in found.items() if has_grown]

    def note(self, figures: Figures) -> None:
        load = f"{self.ended - self.began:.0f} s of mixed load"
        first, last = self.warm[0], self.warm[-1]
        grown = f"{self.mib_a_minute:+.2f} ({first.memory_mib:.0f} to {last.memory_mib:.0f} MiB)"
        figures.note(load, "memory grows <= 1 MiB a minute", f"{grown}, {len(self.visits.took)} answers")
        figures.note(load, f"files {self.files[0]} +- 2 afterwards", self.files[1])
        figures.note(load, f"threads <= {self.threads[0]} afterwards", self.threads[1])
        early, late = self.early, self.late
        figures.note(load, f"CPU <= 1.5 x {early.cpu_ms:.2f} ms an answer", f"{late.cpu_ms:.2f} ms")
        others = f"others used {early.others:.0%} and {late.others:.0%} of the machine"
        judged = others if self.is_quiet else f"not judged: {others}"
        figures.note(load, f"P99 <= 1.2 x {early.p99_ms:.0f} ms", f"{late.p99_ms:.0f} ms, {judged}")


async def at_rest(server: ServerProcess, process: psutil.Process, *, idle_s: float) -> tuple[int, int]:
    """Files and threads when everything that may end by itself has ended."""
    await asyncio.sleep(idle_s)
    assert server.prompt(f"nonce:{time.monotonic()}").status_code == 200
    return process.num_fds(), process.num_threads()


@contextmanager
def started(folder: Path, **options: str) -> Generator[tuple[ServerProcess, ProviderProcess]]:
    """A server that answers, and the provider behind it."""
    with (
        providing("--latency-ms", "5") as provider,
        serving(
            folder,
            ADMIN_PASSWORD=PASSWORD,
            OPENAI_API_KEY="sk-for-tests",
            OPENAI_BASE_URL=provider.base_url,
            DEFAULT_MODEL="openai-chat:gpt-4o-mini",
            RATE_LIMIT_PER_MINUTE="0",
            CACHE_MAX_BYTES="4194304",
            DB_POOL_SIZE="4",  # few enough for `fill`
            LOG_LEVEL="error",
            **options,
        ) as server,
    ):
        server.wait_for("/readyz")
        server.sign_in(password=PASSWORD)
        assert server.prompt("Hello").status_code == 200
        assert provider.stats()["calls"] == 1
        yield server, provider


async def put_to_work(server: ServerProcess, *, duration_s: float, idle_s: float, seed: int) -> Course:
    """Load for `duration_s`, and up to two minutes more where the last one was slow."""
    process = psutil.Process(server.process.pid)
    await fill(server, process)
    files, threads = await at_rest(server, process, idle_s=idle_s)
    course = Course(Visits(), [])
    visitors = [visitor(server, seed + number) for number in range(CLIENTS)]
    watching = asyncio.create_task(watch(process, course.samples))
    course.ended = course.began
    for more_s in (duration_s, *(MINUTE_S for _ in range(MINUTES_MORE))):
        course.ended += more_s
        await asyncio.gather(*(one.visit_until(course.ended, course.visits) for one in visitors))
        if not course.is_slower:
            break
    watching.cancel()
    for one in visitors:
        await one.client.aclose()
    files_left, threads_left = await at_rest(server, process, idle_s=idle_s)
    course.files, course.threads = (files, files_left), (threads, threads_left)
    return course


@pytest.mark.soak
@pytest.mark.timeout(DURATION_S + 600)
async def test_nothing_grows(tmp_path: Path, figures: Figures) -> None:
    figures.seed = seed = int(time.time())
    with started(tmp_path) as (server, provider):
        course = await put_to_work(server, duration_s=DURATION_S, idle_s=IDLE_S, seed=seed)
        course.note(figures)
        told = course.visits.told
        print(f"{dict(told)}, {course.samples[0].memory_mib:.0f} MiB at first")
        # The load was what it says it is.
        assert {kind for kind, _ in told} == KINDS.keys()
        assert told["cancelled", 0] > told["cancelled", 200] / 10
        assert told["hit", 200] > len(course.visits.took) / 3
        assert course.complaints() == []
        assert provider.wait_until(lambda stats: stats["in_flight"] == 0)


@pytest.mark.soak
async def test_what_grows_is_found(tmp_path: Path, figures: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: 240 MiB a minute and four files a second, which nobody lets go of."""
    monkeypatch.setattr("tests.faults.test_long_run.LEFT_OUT_S", 5.0)
    monkeypatch.setattr("tests.faults.test_long_run.MINUTE_S", 5.0)
    with started(tmp_path, module="tests.faults.leaking_server") as (server, _):
        course = await put_to_work(server, duration_s=20.0, idle_s=1.0, seed=0)
    complaints = [complaint.partition(":")[0] for complaint in course.complaints()]
    figures.note("a planted leak of 240 MiB and 240 files a minute", "found", complaints)
    assert complaints[:2] == ["memory", "files"]
    # A busy machine plants less.
    assert MIB_A_MINUTE / 4 < course.mib_a_minute < MIB_A_MINUTE * 1.5
