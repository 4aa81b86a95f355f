"""Sessions: transactions, contention, cancellation and outages, on both backends."""

import asyncio
import random
import sqlite3
import sys
import threading
import time
from pathlib import Path

import anyio
import pytest
from sqlalchemy import text

from app.db.async_session import Database, PoolStatus, open_database
from app.db.engine import async_url
from app.errors import BadConfiguration, DatabaseUnavailable
from tests.leaks import assert_nothing_more, lasting_threads
from tests.servers import PostgresServer, free_port


@pytest.fixture
async def counter(database: Database) -> Database:
    """A database with one number to add to."""
    async with database.write() as session:
        await session.execute(text("CREATE TABLE counter (n INTEGER NOT NULL)"))
        await session.execute(text("INSERT INTO counter VALUES (0)"))
    return database


async def count(database: Database) -> int:
    async with database.read() as session:
        return (await session.execute(text("SELECT n FROM counter"))).scalar_one()


async def add_one(database: Database) -> None:
    lock = " FOR UPDATE" if database.backend == "postgresql" else ""
    async with database.write() as session:
        n = (await session.execute(text(f"SELECT n FROM counter{lock}"))).scalar_one()
        await session.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})


async def test_a_block_that_raises_leaves_nothing(counter: Database) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with counter.write() as session:
            await session.execute(text("UPDATE counter SET n = 1"))
            raise ZeroDivisionError
    assert await count(counter) == 0


async def test_only_the_end_of_a_write_block_commits(counter: Database) -> None:
    async with counter.read() as session:
        await session.execute(text("UPDATE counter SET n = 1"))
        await session.commit()
    assert await count(counter) == 0
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with counter.write() as session:
            await session.execute(text("UPDATE counter SET n = 1"))
            await session.commit()
            raise ZeroDivisionError
    assert await count(counter) == 0


async def test_eight_writers_lose_none_of_four_hundred_changes(counter: Database) -> None:
    async def write() -> None:
        for _ in range(50):
            await add_one(counter)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(write)
    assert await count(counter) == 400


async def test_writers_that_begin_as_readers_are_told_locked(tmp_path: Path) -> None:
    """The control of the tests beside this one: the same work in deferred transactions, as drivers begin them."""
    async with open_database(f"sqlite:///{tmp_path / 'counter.db'}") as database, database.write() as session:
        await session.execute(text("CREATE TABLE counter (n INTEGER NOT NULL)"))
        await session.execute(text("INSERT INTO counter VALUES (0)"))
    start, told = threading.Barrier(8), list[str]()

    def write() -> None:
        connection = sqlite3.connect(tmp_path / "counter.db", isolation_level=None, timeout=5)
        start.wait()
        for _ in range(50):
            try:
                connection.execute("BEGIN")
                (n,) = connection.execute("SELECT n FROM counter").fetchone()
                connection.execute("UPDATE counter SET n = ?", (n + 1,))
                connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                told.append(str(error))
                connection.execute("ROLLBACK")
        connection.close()

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(anyio.to_thread.run_sync, write)
    print(f"{len(told)} of 400 were told")
    assert "database is locked" in told


async def test_four_processes_of_writers_are_never_told_locked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    async with open_database(url) as database:
        async with database.write() as session:
            await session.execute(text("CREATE TABLE counter (n INTEGER NOT NULL)"))
            await session.execute(text("INSERT INTO counter VALUES (0)"))
        script = (
            "import anyio, sys\n"
            "from app.db.async_session import open_database\n"
            "from tests.db.test_async_session import add_one\n"
            "async def main():\n"
            "    async with open_database(sys.argv[1]) as database, anyio.create_task_group() as tasks:\n"
            "        for _ in range(50): tasks.start_soon(add_one, database)\n"
            "anyio.run(main)\n"
        )
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(anyio.run_process, [sys.executable, "-c", script, url])
        assert await count(database) == 200


async def test_a_storm_of_cancellations_leaves_the_pool_whole(counter: Database) -> None:
    """Callers that leave at any moment, some by a timeout and some by a cancel scope, and ask again at once."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    wrong: list[tuple[int, int]] = []
    finished = cancelled = 0

    async def ask(nonce: int) -> None:
        nonlocal finished
        sleep = " FROM pg_sleep(0.001)" if counter.backend == "postgresql" else ""
        async with counter.write() if nonce % 3 == 0 else counter.read() as session:
            for _ in range(3):
                answer = (
                    await session.execute(text(f"SELECT CAST(:nonce AS INTEGER){sleep}"), {"nonce": nonce})
                ).scalar_one()
                if answer != nonce:
                    wrong.append((nonce, answer))
        finished += 1

    async def worker(number: int) -> None:
        nonlocal cancelled
        for turn in range(60):
            nonce = number * 1000 + turn
            patience = dice.expovariate(1 / (10 * calm_s))  # ten ask at once
            if turn % 2:
                with anyio.move_on_after(patience) as scope:
                    await ask(nonce)
                cancelled += scope.cancelled_caught
            else:
                task = asyncio.create_task(ask(nonce))
                await asyncio.wait((task,), timeout=patience)
                cancelled += task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    await ask(0)
    began = time.monotonic()
    for _ in range(5):
        await ask(0)
    calm_s = (time.monotonic() - began) / 5
    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(worker, number)
    assert wrong == []
    assert cancelled > 50
    assert finished > 50
    assert counter.pool_status().checked_out == 0
    # Every connection that is left works, and no lock is held.
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(add_one, counter)
    assert await count(counter) == 20


async def test_a_commit_that_has_begun_is_not_cut_by_a_cancellation(counter: Database) -> None:
    committed = 0
    for attempt in range(40):
        with anyio.move_on_after(attempt / 4000) as scope:
            await add_one(counter)
            committed += 1
        n = await count(counter)
        # Left by cancellation: all or nothing. Left by itself: all.
        assert n in ({committed, committed + 1} if scope.cancelled_caught else {committed})
        committed = n


async def test_a_cancelled_block_leaves_nothing(counter: Database) -> None:
    with anyio.move_on_after(0.2):
        async with counter.write() as session:
            await session.execute(text("UPDATE counter SET n = 1"))
            await anyio.sleep_forever()
    assert await count(counter) == 0


async def test_an_empty_pool_is_an_outage_after_the_pool_timeout(database_url: str) -> None:
    waits: list[float] = []
    async with open_database(
        database_url, pool_size=5, max_overflow=0, pool_timeout_s=0.2, on_wait=waits.append
    ) as database:
        async with anyio.create_task_group() as tasks:
            leave = anyio.Event()

            async def hold() -> None:
                async with database.read():
                    await leave.wait()

            for _ in range(5):
                tasks.start_soon(hold)
            while len(waits) < 5:
                await anyio.sleep(0.001)
            assert database.pool_status() == PoolStatus(pool_size=5, checked_out=5, overflow=0)
            with pytest.raises(DatabaseUnavailable, match="in use"):
                async with database.read():
                    pass
            assert 0.2 <= waits[-1] < 1.5
            leave.set()
        async with database.read():
            assert database.pool_status().checked_out == 1
        assert database.pool_status().checked_out == 0


async def test_overflow_counts_what_is_open_beyond_the_pool(database_url: str) -> None:
    async with open_database(database_url, pool_size=1, max_overflow=2) as database:
        async with database.read(), database.read(), database.read():
            assert database.pool_status() == PoolStatus(pool_size=1, checked_out=3, overflow=2)
        assert database.pool_status() == PoolStatus(pool_size=1, checked_out=0, overflow=0)


@pytest.mark.parametrize("openings", [8, pytest.param(50, marks=pytest.mark.soak)])
async def test_openings_leave_no_thread_and_no_task(database_url: str, openings: int) -> None:
    async def once() -> None:
        async with open_database(database_url) as database:
            await database.ping(timeout_s=5)

    def lasting() -> tuple[int, int]:
        return len(lasting_threads()), len(asyncio.all_tasks())

    await once()
    before = lasting()
    for _ in range(openings):
        await once()
    await assert_nothing_more(lasting, before)


async def test_wrong_sql_is_our_mistake_and_no_outage(database: Database) -> None:
    with pytest.raises(Exception, match="no_such_table") as mistake:
        async with database.read() as session:
            await session.execute(text("SELECT secret FROM no_such_table WHERE x = :x"), {"x": "hunter2"})
    assert not isinstance(mistake.value, DatabaseUnavailable)
    assert "hunter2" not in str(mistake.value)


# SQLite


async def test_sqlite_is_set_up_for_concurrency_and_durability(tmp_path: Path) -> None:
    async with open_database(f"sqlite:///{tmp_path / 'x.db'}") as database, database.read() as session:
        found = {
            name: (await session.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "journal_size_limit")
        }
    full = 2
    assert found == {
        "journal_mode": "wal",
        "synchronous": full,
        "foreign_keys": 1,
        "busy_timeout": 5000,
        "journal_size_limit": 64 * 1024 * 1024,
    }


async def test_a_full_disk_refuses_writes_lets_reads_go_on_and_recovers(tmp_path: Path) -> None:
    async with open_database(f"sqlite:///{tmp_path / 'x.db'}", pool_size=1, max_overflow=0) as database:
        async with database.write() as session:
            await session.execute(text("CREATE TABLE t (x TEXT)"))
            await session.execute(text("PRAGMA max_page_count = 10"))
        with pytest.raises(DatabaseUnavailable, match="no space left"):
            async with database.write() as session:
                await session.execute(text("INSERT INTO t VALUES (:x)"), {"x": "x" * 100_000})
        async with database.read() as session:
            assert (await session.execute(text("SELECT count(*) FROM t"))).scalar_one() == 0
            await session.execute(text("PRAGMA max_page_count = 10000"))
        async with database.write() as session:
            await session.execute(text("INSERT INTO t VALUES (:x)"), {"x": "x" * 100_000})


async def test_a_writer_elsewhere_makes_writes_an_outage_and_the_ping_prompt(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    async with open_database(f"sqlite:///{path}", statement_timeout_s=0.3) as database:
        await database.ping(timeout_s=5)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable):
                await database.ping(timeout_s=0.05)
        assert time.monotonic() - began < 0.3
        with pytest.raises(DatabaseUnavailable):
            async with database.write():
                pass
        async with database.read() as session:
            await session.execute(text("SELECT 1"))
        other.close()
        await database.ping(timeout_s=5)


async def test_memory_is_one_database_for_all_blocks() -> None:
    async with open_database("sqlite://") as database:
        async with database.write() as session:
            await session.execute(text("CREATE TABLE counter (n INTEGER NOT NULL)"))
            await session.execute(text("INSERT INTO counter VALUES (0)"))
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(add_one, database)
                tasks.start_soon(count, database)
        assert await count(database) == 20
        assert database.pool_status() == PoolStatus(pool_size=1, checked_out=0, overflow=0)


# PostgreSQL


async def test_a_frozen_server_is_an_outage_in_bounded_time_and_comes_back(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    async with open_database(
        postgres_url, pool_timeout_s=0.5, connect_timeout_s=0.5, statement_timeout_s=0.5
    ) as database:

        async def ask() -> None:
            async with database.read() as session:
                await session.execute(text("SELECT 1"))

        async def refused_within(limit_s: float) -> None:
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable):
                await ask()
            assert time.monotonic() - began < limit_s

        await ask()
        with anyio.fail_after(2), pytest.raises(DatabaseUnavailable):  # noqa: PT012
            async with database.write() as session:
                await session.execute(text("SELECT 1"))
                postgres_server.freeze()
                await session.execute(text("SELECT 1"))
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(refused_within, 2)
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            await database.ping(timeout_s=0.1)
        assert time.monotonic() - began < 0.4
        postgres_server.thaw()
        with anyio.fail_after(5):
            while True:
                try:
                    await ask()
                    await database.ping(timeout_s=1)
                    break
                except DatabaseUnavailable:
                    await anyio.sleep(0.05)
        assert database.pool_status().checked_out == 0


async def test_closing_does_not_wait_for_a_frozen_server(postgres_server: PostgresServer, postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        async with database.read(), database.read():
            pass
        postgres_server.freeze()
        began = time.monotonic()
    assert time.monotonic() - began < 4


async def test_a_restarted_server_is_met_by_the_next_caller(postgres_server: PostgresServer, postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        async with database.read(), database.read():
            pass
        postgres_server.kill()
        with pytest.raises(DatabaseUnavailable):
            async with database.read():
                pass
        # Not in a thread: the kernel ends the server together with the thread that started it.
        postgres_server.restart()
        for _ in range(5):
            async with database.read() as session:
                await session.execute(text("SELECT 1"))


async def test_a_slow_statement_is_ended(postgres_url: str) -> None:
    async with open_database(postgres_url, statement_timeout_s=0.3) as database:
        with anyio.fail_after(2), pytest.raises(DatabaseUnavailable):
            async with database.read() as session:
                await session.execute(text("SELECT pg_sleep(10)"))
        await database.ping(timeout_s=2)


async def test_a_cancelled_statement_ends_on_the_server_as_well(postgres_url: str) -> None:
    async with open_database(postgres_url) as database:
        with anyio.move_on_after(0.3):
            async with database.read() as session:
                await session.execute(text("SELECT pg_sleep(30)"))
        async with database.read() as session:
            sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
            assert (await session.execute(text(sleeping))).scalar_one() == 0


async def test_no_server_is_an_outage_at_the_first_use() -> None:
    async with open_database(f"postgresql://postgres@127.0.0.1:{free_port()}/x") as database:
        with pytest.raises(DatabaseUnavailable):
            async with database.read():
                pass
        with pytest.raises(DatabaseUnavailable):
            await database.ping(timeout_s=1)


# URLs


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sqlite:///data/x.db", "sqlite+aiosqlite:///data/x.db"),
        ("sqlite+aiosqlite:////var/x.db", "sqlite+aiosqlite:////var/x.db"),
        ("postgres://u:p%40ss@h/d", "postgresql+asyncpg://u:p%40ss@h/d"),
        ("postgresql://u:p@h:5433/d?sslmode=require", "postgresql+asyncpg://u:p@h:5433/d?ssl=require"),
        ("postgresql+asyncpg://u@/d?host=/run&port=1", "postgresql+asyncpg://u@/d?host=%2Frun&port=1"),
    ],
)
def test_the_driver_is_named_in_a_url_that_leaves_it_out(given: str, meant: str) -> None:
    assert async_url(given) == meant


@pytest.mark.parametrize(
    "url",
    ["", "x", "mysql://root:hunter2@h/d", "postgresql+psycopg://u:hunter2@h/d", "postgresql://u:hunter2@h:port/d"],
)
def test_another_url_is_refused_with_an_example_and_without_its_password(url: str) -> None:
    with pytest.raises(BadConfiguration, match=r"DATABASE_URL.*postgresql\+asyncpg://user") as refused:
        async_url(url)
    assert "hunter2" not in str(refused.value)


async def test_a_missing_driver_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(BadConfiguration, match=r"pip install 'mnemosine\[postgres\]'"):
        async with open_database("postgresql://u@h/d"):
            pass
