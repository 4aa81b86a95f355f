"""An opened database with our schema, on both backends."""

from collections.abc import AsyncIterator

import pytest
from anyio import to_thread

from app.db import schema
from app.db.async_session import Database, open_database


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await to_thread.run_sync(schema.upgrade, database_url)
    async with open_database(database_url, pool_size=5, max_overflow=0) as database:
        yield database
        assert database.pool_status().checked_out == 0
