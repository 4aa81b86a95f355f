"""The sweep of conversations: never much at once."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from app.core.conversations import Conversations
from app.core.run import Caller
from app.db.async_session import Database, open_database
from app.db.conversations import sweep_conversations

ANN = Caller("1", "ann", "user")


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    async with open_database(migrated_url) as database:
        yield database


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
