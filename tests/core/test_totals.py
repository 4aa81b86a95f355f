"""Everybody's numbers: the sum of workers and replicas, windows of that sum, and what an outage leaves of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from math import inf
from pathlib import Path
from time import time
from typing import Any, Literal

import pytest

from app.core.metrics import WINDOWS_S, Metrics
from app.core.picture import fold
from app.core.totals import Totals
from app.errors import StoreUnavailable
from app.stores.scoreboard import Scoreboard


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Posts:
    """The posts of a shared store, and little else of it."""

    kind: Literal["redis"] = "redis"

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self.said: dict[str, dict[str, bytes]] = {}
        self.until: dict[tuple[str, str], float] = {}
        self.owners: dict[bytes, str] = {}
        self.clock = clock
        self.away = False

    async def post(self, topic: str, member: str, value: bytes, *, ttl_s: float) -> None:
        if self.away:
            raise StoreUnavailable("the store is away")
        self.said.setdefault(topic, {})[member] = value
        self.until[topic, member] = self.clock() + ttl_s

    async def posts(self, topic: str) -> dict[str, bytes]:
        if self.away:
            raise StoreUnavailable("the store is away")
        said = self.said.get(topic, {})
        return {member: value for member, value in said.items() if self.until.get((topic, member), inf) > self.clock()}

    async def claim(self, key: bytes, owner: str, *, ttl_s: float) -> bool:
        return self.owners.setdefault(key, owner) == owner


class Worker:
    """One worker of a server: what it counts, and the totals that it would answer with."""

    def __init__(self, folder: Path, clock: Callable[[], float], store: Any, **parts: dict[str, Any]) -> None:
        self.left = False
        self.metrics = Metrics(clock=clock)
        self.totals = Totals(
            self.metrics,
            Scoreboard(folder / "numbers", founder="tests", merge=fold, clock=clock, boot=clock),
            parts={name: lambda part=part: part for name, part in parts.items()},
            levels=lambda: {"requests_in_flight": self.metrics.in_flight},
            data_dir=folder,
            store=store,
            fresh_s=0.0,
        )

    def serve(self, *elapsed_s: float, route: str = "GET /x") -> None:
        for seconds in elapsed_s:
            self.metrics.record_request(route, 200, seconds)

    async def leave(self) -> None:
        if not self.left:
            self.left = True
            await self.totals.aclose()


Open = Callable[..., Worker]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    workers: list[Worker] = []

    def open_worker(
        folder: str = "data", *, clock: Callable[[], float] = time, store: Any = None, **parts: Any
    ) -> Worker:
        (tmp_path / folder).mkdir(exist_ok=True)
        workers.append(Worker(tmp_path / folder, clock, store, **parts))
        return workers[-1]

    yield open_worker
    for worker in workers:
        await worker.leave()


async def test_whoever_is_asked_answers_for_all(opened: Open) -> None:
    workers = [opened() for _ in range(4)]
    for number, worker in enumerate(workers):
        worker.serve(*[0.1 * (number + 1)] * 25)
        worker.metrics.in_flight = 1
        await worker.totals.report()
    for worker in workers:
        picture = await worker.totals.read()
        assert len(picture.workers) == 4
        assert picture.level("requests_in_flight") == 4
        assert picture.total.count("requests") == 100
        assert picture.total.distribution("response_seconds").percentile(0.99) == pytest.approx(0.4, rel=0.01)


async def test_ones_own_numbers_are_live(opened: Open) -> None:
    worker, other = opened(), opened()
    await worker.totals.report()
    worker.serve(0.1)
    assert (await worker.totals.read()).total.count("requests") == 1
    assert (await other.totals.read()).total.count("requests") == 0


async def test_windows_are_of_everybody_and_of_their_time(opened: Open) -> None:
    clock = Clock()
    workers = [opened(clock=clock) for _ in range(2)]
    for _ in range(66 * 12):  # for 66 minutes, each worker answers one request in five seconds
        for worker in workers:
            worker.serve(0.1)
            await worker.totals.report()
        clock.now += 5
    for worker in workers:
        picture = await worker.totals.read()
        assert picture.total.count("requests") == 2 * 66 * 12
        for window, expected_s in WINDOWS_S.items():
            counted, seconds = picture.windows[window]
            assert expected_s <= seconds <= expected_s + 65
            assert counted.count("requests") == pytest.approx(seconds / 5 * 2, abs=3)
            assert counted.distribution("response_seconds").count == counted.count("requests")


async def test_a_young_server_answers_with_all_it_has(opened: Open) -> None:
    clock = Clock()
    worker = opened(clock=clock)
    clock.now += 10
    worker.serve(0.1)
    counted, seconds = (await worker.totals.read()).windows["5m"]
    assert (counted.count("requests"), seconds) == (1, 10)


async def test_the_windows_of_a_worker_that_came_later_hold_what_was_before_it(opened: Open) -> None:
    clock = Clock()
    old = opened(clock=clock)
    for _ in range(24):
        old.serve(0.1)
        await old.totals.report()
        clock.now += 5
    young = opened(clock=clock)
    counted, seconds = (await young.totals.read()).windows["1m"]
    assert counted.count("requests") == pytest.approx(seconds / 5, abs=1)
    assert 60 <= seconds <= 66


POOL: dict[str, Any] = {
    "capacity": 10,
    "size": 2,
    "in_use": 1,
    "hits": 6,
    "misses": 2,
    "agents": [{"agent": "a"}],
    "slots": [{"name": "p", "limit": 5, "in_use": 1}],
    "recommendations": [{"code": "few", "severity": "info", "setting": "AGENT_POOL_SIZE", "suggested": 12}],
}


async def test_parts_add_up(opened: Open) -> None:
    more = {"code": "few", "severity": "warning", "setting": "AGENT_POOL_SIZE", "suggested": 11}
    first = opened(agent_pool=POOL)
    second = opened(agent_pool={**POOL, "recommendations": [more]})
    starting = opened(agent_pool={})
    for worker in (first, second, starting):
        await worker.totals.report()
    for worker in (first, second, starting):
        pool = (await worker.totals.read()).part("agent_pool")
        assert (pool["capacity"], pool["size"], pool["in_use"]) == (20, 4, 2)
        assert (pool["hits"], pool["misses"], pool["hit_ratio"]) == (12, 4, 0.75)
        assert len(pool["agents"]) == 2
        assert pool["recommendations"] == [more]
        assert pool["slots"][0]["limit"] == 10


async def test_what_a_part_counted_outlives_its_worker(opened: Open) -> None:
    first, second = opened(agent_pool=POOL), opened(agent_pool=POOL)
    await first.totals.report()
    await first.leave()
    pool = (await second.totals.read()).part("agent_pool")
    assert (pool["hits"], pool["size"]) == (12, 2)


async def test_replicas_meet_in_the_store(opened: Open) -> None:
    store = Posts()
    clock = Clock()
    machines = [opened(f"machine-{number}", store=store, clock=clock) for number in range(3)]
    for machine in machines:
        machine.serve(0.1, 0.2)
        await machine.totals.report()
    pictures = [await machine.totals.read() for machine in machines]
    assert [picture.total.count("requests") for picture in pictures] == [6, 6, 6]
    assert [(len(picture.workers), picture.replicas) for picture in pictures] == [(3, 3)] * 3
    assert pictures[0].windows["1m"][0].count("requests") == 6
    assert pictures[0].reach == "replicas"


async def test_a_killed_replica_is_counted_on_and_once(opened: Open) -> None:
    clock = Clock()
    store = Posts(clock)
    one, two = (opened(f"machine-{number}", store=store, clock=clock) for number in range(2))
    for _ in range(30):  # minutes in which both answer a request in five seconds
        for _ in range(12):
            clock.now += 5
            for machine in (one, two):
                machine.serve(0.1)
                await machine.totals.report()
    for _ in range(26):  # `two` is not heard of any more
        clock.now += 5
        one.serve(0.1)
        await one.totals.report()
    picture = await one.totals.read()
    assert (picture.replicas, len(picture.workers)) == (1, 1)
    assert picture.total.count("requests") == 360 + 26 + 360
    assert picture.windows["1m"][0].count("requests") == pytest.approx(12, abs=2)
    assert picture.windows["5m"][0].count("requests") == pytest.approx(60 + 60 - 26, abs=4)
    await two.totals.report()  # it was only cut off
    picture = await one.totals.read()
    assert (picture.replicas, picture.total.count("requests")) == (2, 360 + 26 + 360)


async def test_a_replica_that_ends_leaves_all_it_has_counted(opened: Open) -> None:
    clock = Clock()
    store = Posts(clock)
    stays, *leaving = opened("a", store=store, clock=clock), *(opened("b", store=store, clock=clock) for _ in range(4))
    for machine in (stays, *leaving):
        await machine.totals.report()
    for worker in leaving:
        worker.serve(0.1, 0.2)
    await asyncio.gather(*(worker.leave() for worker in leaving))
    clock.now += 10
    picture = await stays.totals.read()
    assert (picture.replicas, picture.total.count("requests")) == (1, 8)
    again = opened("b", store=store, clock=clock)  # a new run of the same folder
    again.serve(0.1)
    for machine in (stays, again):
        await machine.totals.report()
    for machine in (stays, again):
        picture = await machine.totals.read()
        assert (picture.replicas, picture.total.count("requests")) == (2, 9)


async def test_many_that_have_gone_become_one(opened: Open) -> None:
    clock = Clock()
    store = Posts(clock)
    stays = opened("stays", store=store, clock=clock)
    for number in range(200):
        comes = opened(f"{number}", store=store, clock=clock)
        comes.serve(0.1)
        await comes.totals.report()
        await comes.leave()
        clock.now += 130
        await stays.totals.report()
    picture = await stays.totals.read()
    assert (picture.replicas, picture.total.count("requests")) == (1, 200)
    said = await store.posts("counted")
    assert len(said) < 25
    assert len(said["past"]) < 4000
    clock.now += 1000  # nobody says it on, so the next one begins anew
    assert (await stays.totals.read()).total.count("requests") == 0


async def test_without_the_store_it_is_ones_own_machine_and_it_says_so(opened: Open) -> None:
    store = Posts()
    machines = [opened(f"machine-{number}", store=store) for number in range(2)]
    for machine in machines:
        machine.serve(0.1)
        await machine.totals.report()
    store.away = True
    await machines[0].totals.report()
    picture = await machines[0].totals.read()
    assert (picture.total.count("requests"), picture.replicas, picture.reach) == (1, 1, "store away")
    store.away = False
    assert (await machines[0].totals.read()).total.count("requests") == 2


async def test_a_replica_of_another_version_is_left_out(opened: Open) -> None:
    store = Posts()
    machine = opened(store=store)
    store.said["numbers"] = {"stranger": b"what?"}
    assert (await machine.totals.read()).replicas == 1


async def test_a_folder_that_fails_stops_nothing(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    worker = opened()
    worker.totals.start()
    worker.serve(0.1)
    worker.totals.scoreboard._database.execute("DROP TABLE facts")  # pyright: ignore[reportPrivateUsage]
    async with asyncio.timeout(10):
        while "cannot be shared" not in caplog.text:
            await asyncio.sleep(0.05)
    assert (await worker.totals.read()).total.count("requests") == 1
