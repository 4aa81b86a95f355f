"""Fixtures that every test may ask for: the event loop, real databases and Redis, and a provider of models."""

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.fake_provider import FakeProvider
from tests import prepared
from tests.servers import PostgresServer, RedisServer, ServerMissing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a real server with `service`, so that nobody has to remember it."""
    for item in items:
        if {"postgres_server", "redis_server"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.service)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    try:
        server = PostgresServer()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    try:
        server = RedisServer()
    except ServerMissing as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database of one's own; the server may be frozen, killed or restarted at will."""
    with _database_on(postgres_server, PostgresServer.new_database) as url:
        yield url


@pytest.fixture
def redis_url(redis_server: RedisServer) -> Iterator[str]:
    """An empty Redis database of one's own; the server may be frozen, killed or restarted at will."""
    redis_server.heal()
    yield redis_server.new_database()
    redis_server.heal()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once in a SQLite file and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'mnemosine.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    """A provider of one's own, to which every model of `openai-chat` leads in this test."""
    async with FakeProvider() as provider:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-for-tests")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        yield provider


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with today's schema and nothing in it, on both backends."""
    if request.param == "sqlite":
        prepared.migrate(tmp_path / "mnemosine.db")
        yield f"sqlite+aiosqlite:///{tmp_path / 'mnemosine.db'}"
    else:
        with _database_on(request.getfixturevalue("postgres_server"), prepared.migrated_on) as url:
            yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def installed_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database as a first start leaves it, with the administrator of `tests/prepared.py`, on both backends."""
    if request.param == "sqlite":
        prepared.install(tmp_path)
        yield f"sqlite+aiosqlite:///{tmp_path / 'mnemosine.db'}"
    else:
        with _database_on(request.getfixturevalue("postgres_server"), prepared.installed_on) as url:
            yield url


@contextmanager
def _database_on(server: PostgresServer, make: Callable[[PostgresServer], str]) -> Generator[str]:
    server.heal()
    url = make(server)
    yield url
    server.heal()
    server.drop_database(url)
