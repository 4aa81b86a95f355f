"""kill -9: a worker is replaced, its runs are ended, and what it held is free again."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from app.db.async_session import Database, open_database
from app.db.runs import list_runs
from benchmarks.fake_provider import FakeProvider
from tests.figures import Figures
from tests.process import ServerProcess, serving
from tests.siege import post, siege
from tests.test_shutdown import a_provider, answers, environment, prompt, ready_server, worker_pids


async def runs(database: Database) -> Counter[tuple[int, str]]:
    """How many runs each process has, by its pid and their status."""
    async with database.read() as session:
        rows = (await list_runs(session, user_id=None, limit=200)).rows
    return Counter((int(run.worker.split(":")[1]), run.status) for run in rows)


async def until_recorded(database: Database, fake: FakeProvider) -> set[int]:
    """Wait until twelve runs are under way and on record; gives the workers that have some."""
    await fake.until(lambda: fake.in_flight == 12, timeout_s=30)
    async with asyncio.timeout(30):
        while True:
            counted = await runs(database)
            if sum(count for (_, status), count in counted.items() if status == "running") == 12:
                return {pid for pid, status in counted if status == "running"}
            await asyncio.sleep(0.05)


async def until_none_runs(database: Database, pids: set[int]) -> Counter[tuple[int, str]]:
    async with asyncio.timeout(30):
        while True:
            counted = await runs(database)
            if not any(counted[pid, "running"] for pid in pids):
                return counted
            await asyncio.sleep(0.05)


async def test_no_run_outlives_its_worker(tmp_path: Path, database_url: str) -> None:
    """First one worker is killed, then the whole server."""
    async with a_provider(60) as fake:
        settings = environment(fake, DATABASE_URL=database_url)
        with ready_server(tmp_path, "--workers", "2", **settings) as server:
            async with open_database(database_url) as database:
                async with siege(server.url, prompt(server), clients=12) as book:
                    victim = min(await until_recorded(database, fake))
                    os.kill(victim, signal.SIGKILL)
                    counted = await until_none_runs(database, {victim})
                    died = counted[victim, "interrupted"]
                    assert len(book.lost) == died > 0, "the runs of the other go on"
                    async with asyncio.timeout(30):
                        while len(worker_pids(server) - {victim}) < 2:
                            await asyncio.sleep(0.02)
                    busy = await until_recorded(database, fake)
                    for pid in (server.process.pid, *worker_pids(server)):
                        os.kill(pid, signal.SIGKILL)
                with serving(tmp_path, **settings) as successor:
                    counted = await until_none_runs(database, busy)
                    assert successor.stop() == 0
    assert sum(count for (_, status), count in counted.items() if status == "interrupted") == died + 12


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_twenty_killed_workers_cost_no_more_than_what_they_did(tmp_path: Path, figures: Figures) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'mnemosine.db'}"
    took: list[float] = []
    async with a_provider(0.3) as fake, open_database(url) as database:
        with ready_server(tmp_path, "--workers", "2", **environment(fake, DATABASE_URL=url)) as server:
            async with siege(server.url, prompt(server), clients=40) as book:
                for _ in range(20):
                    await answers(book, book.answered + 80)
                    before, lost = worker_pids(server), len(book.lost)
                    killed = time.monotonic()
                    os.kill(min(before), signal.SIGKILL)
                    async with asyncio.timeout(30):
                        while not (new := worker_pids(server) - before):
                            await asyncio.sleep(0.01)
                    took.append(time.monotonic() - killed)
                    async with asyncio.timeout(30):
                        while not any(pid in new for pid, _ in await runs(database)):
                            await asyncio.sleep(0.05)
                    assert len(book.lost) - lost <= 40
            assert book.refused == 0
            assert set(book.statuses) == {200}
            counted = await until_none_runs(database, {pid for pid, _ in await runs(database)})
            assert server.stop() == 0
    replaced = f"{len(book.lost)}, replaced after {sorted(took)[10]:.2f} s, at most {max(took):.2f}"
    figures.note("20 workers killed under 40 clients", "<= 800 lost, no run left running", replaced)
    print(counted)


@pytest.mark.soak
async def test_what_a_killed_worker_held_is_free_again(tmp_path: Path) -> None:
    async with a_provider(60) as fake:
        with ready_server(tmp_path, "--workers", "2", **environment(fake)) as server:
            conversation = await asyncio.to_thread(new_conversation, server)
            in_turn = prompt(server, conversation_id=conversation)
            with_key = post(
                "/api/v1/agent/prompt",
                json.dumps({"message": "once"}).encode(),
                **server.headers,
                **{"Idempotency-Key": "one"},
            )
            async with siege(server.url, in_turn, clients=1) as turns, siege(server.url, with_key, clients=1) as keys:
                await fake.until(lambda: fake.in_flight == 2)
                fake.latency_s = 0.0
                for pid in worker_pids(server):
                    os.kill(pid, signal.SIGKILL)
                async with asyncio.timeout(90):
                    while not (turns.answered and keys.answered):
                        await asyncio.sleep(0.1)
            assert set(turns.statuses) == set(keys.statuses) == {200}
            assert server.stop() == 0


def new_conversation(server: ServerProcess) -> str:
    import httpx2

    reply = httpx2.post(f"{server.url}/api/v1/conversations", json={}, headers=server.headers, timeout=30)
    return reply.json()["id"]
