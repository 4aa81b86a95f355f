"""Fixtures that every test may ask for: real databases and Redis, a provider of models, and a table of figures."""

import json
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from benchmarks.fake_provider import FakeProvider
from tests import prepared
from tests.figures import COLUMNS, PROPERTY, Figures, table
from tests.servers import PostgresServer, RedisServer, ServerMissing

SERVERS_OF_A_FOLDER = {"fuzz", "replicas", "wire", "workers"}
"""Their tests share servers over files, so that one process has to run them all."""
WITHOUT_PROCESSES = {"api", "core", "db", "stores"}
"""Their files are short. They come last where several processes run the tests, so that none waits long for another."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses a real server with `service`, so that nobody has to remember it."""
    for item in items:
        if {"postgres_server", "redis_server"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.service)
    if hasattr(config, "workerinput"):  # one of the processes of pytest-xdist
        items.sort(key=lambda item: item.path.parent.name in WITHOUT_PROCESSES)


class ByFile(LoadScopeScheduling):
    """Gives each process of `--numprocesses` one file after the other, or one of `SERVERS_OF_A_FOLDER`.

    pytest-xdist has marks for groups too, but 3.8 writes them where pytest 9.2 does not look any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        return file.parent.name if file.parent.name in SERVERS_OF_A_FOLDER else str(file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures, those of failed tests included; here, since this file is read in every process."""
    rows = [
        (*json.loads(str(value)), outcome)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if rows:
        terminalreporter.section("figures of the faults")
        for line in table([COLUMNS, *rows]):
            terminalreporter.line(line)


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    """Where a test notes its figures."""
    return Figures(record_property)


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
