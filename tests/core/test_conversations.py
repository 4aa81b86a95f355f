"""The sweep of conversations: by one process, and never much at once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from anyio import to_thread

from app.core.conversations import Conversations
from app.core.run import Caller
from app.db import schema
from app.db.async_session import Database, open_database
from app.db.conversations import sweep_conversations
from app.stores.local import LocalStore

ANN = Caller("1", "ann", "user")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await to_thread.run_sync(schema.upgrade, database_url)
    async with open_database(database_url) as database:
        yield database


class Sweeping(Conversations):
    swept = 0

    async def sweep(self) -> int:
        self.swept += 1
        return await super().sweep()


@pytest.mark.parametrize("shared", [True, False])
async def test_one_of_all_processes_sweeps(database: Database, tmp_path: Path, shared: bool) -> None:
    stores = [LocalStore(tmp_path / "shared") for _ in range(2)]
    processes = [
        Sweeping(database, sweep_every_s=0.01, claim=store.claim if shared else None, jitter=lambda: 0.5)
        for store in stores
    ]
    for process in processes:
        process.start()
    async with asyncio.timeout(30):
        while max(process.swept for process in processes) < 10:
            await asyncio.sleep(0.01)
    for process, store in zip(processes, stores, strict=True):
        await process.aclose()
        await store.aclose()
    # The second line is the control: without a lease both sweep.
    assert [process.swept > 0 for process in processes].count(True) == (1 if shared else 2)


async def test_a_batch_ends_where_there_are_many_messages(database: Database) -> None:
    conversations = Conversations(database)
    talks = [(await conversations.create(ANN)).id for _ in range(5)]
    for talk in talks:
        async with conversations.turn(ANN, talk) as turn:
            await turn.append(['{"kind":"request"}'] * 4)
    batches: list[int] = []
    while not batches or batches[-1]:
        async with database.write() as session:
            later = datetime.now(UTC) + timedelta(minutes=1)
            batches.append(await sweep_conversations(session, unused_since=later, limit=20, max_messages=9))
    assert batches == [2, 2, 1, 0]
