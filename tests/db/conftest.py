"""An opened database with our schema, on both backends."""

from collections.abc import AsyncIterator

import pytest

from app.db.async_session import Database, open_database


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    async with open_database(migrated_url, pool_size=5, max_overflow=0) as database:
        yield database
        assert database.pool_status().checked_out == 0
