"""What several processes have: caches over one shared store, in both of its homes."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from app.core.cache_service import CacheService
from app.stores.local import LocalStore
from app.stores.memory import MemoryStore
from app.stores.protocol import SharedStore
from app.stores.redis import RedisStore

OpenStore = Callable[[], Awaitable[SharedStore]]


def cache_on(store: SharedStore) -> CacheService:
    """The cache of one process over `store`."""
    return CacheService(MemoryStore(max_bytes=10**6), store, enabled=True, ttl_s=60, tier=store, jitter=lambda: 0.5)


@pytest.fixture(params=["local", pytest.param("redis", marks=pytest.mark.service)])
async def open_store(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[OpenStore]:
    """Opens the store of one more process, on one machine or on many."""
    url: str | None = request.getfixturevalue("redis_url") if request.param == "redis" else None
    async with AsyncExitStack() as stack:

        async def open_one() -> SharedStore:
            store: SharedStore
            if url is None:
                store = LocalStore(tmp_path / "shared")
            else:
                store = redis = RedisStore(url)
                await redis.start()
            stack.push_async_callback(store.aclose)
            return store

        yield open_one
