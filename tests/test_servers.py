"""The real servers do what the fault tests rely on: answer, freeze, thaw, die and come back with their data."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from tests.servers import PostgresServer, RedisServer, ServerFailed


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[AsyncConnection]:
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": 0.3})
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


def impatient(url: str) -> Redis:
    return Redis.from_url(url, socket_timeout=0.3, socket_connect_timeout=0.3, retry=None)  # pyright: ignore[reportUnknownMemberType] partial stubs


async def test_every_database_starts_empty(database_url: str) -> None:
    async with connected(database_url) as connection:
        await connection.execute(text("CREATE TABLE note (body TEXT)"))
        await connection.execute(text("INSERT INTO note VALUES ('remember')"))
        assert (await connection.execute(text("SELECT body FROM note"))).scalars().all() == ["remember"]


async def test_postgres_gives_each_test_its_own_database(postgres_server: PostgresServer, postgres_url: str) -> None:
    other = postgres_server.new_database()
    assert other != postgres_url
    async with connected(postgres_url) as connection:
        await connection.execute(text("CREATE TABLE note (body TEXT)"))
        await connection.commit()
    async with connected(other) as connection:
        assert (await connection.execute(text("SELECT to_regclass('note')"))).scalar() is None
    postgres_server.drop_database(other)


async def test_a_frozen_postgres_keeps_connections_but_answers_nobody(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    async with connected(postgres_url) as connection:
        postgres_server.freeze()
        question = asyncio.create_task(connection.execute(text("SELECT 1")))
        with pytest.raises(TimeoutError):
            async with connected(postgres_url):
                pass
        assert not question.done()
        postgres_server.thaw()
        assert (await question).scalar() == 1


async def test_a_killed_postgres_refuses_and_comes_back_with_its_data(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    async with connected(postgres_url) as connection:
        await connection.execute(text("CREATE TABLE note (body TEXT)"))
        await connection.commit()
    postgres_server.kill()
    with pytest.raises(OSError, match=r"refused|failed"):
        async with connected(postgres_url):
            pass
    postgres_server.restart()
    async with connected(postgres_url) as connection:
        assert (await connection.execute(text("SELECT to_regclass('note')"))).scalar() == "note"


async def test_an_orderly_restart_of_postgres_keeps_its_port(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    port, pid = postgres_server.port, postgres_server.pid
    postgres_server.restart()
    assert postgres_server.port == port
    assert postgres_server.pid != pid
    async with connected(postgres_url) as connection:
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1


async def test_redis_gives_each_test_its_own_database(redis_server: RedisServer, redis_url: str) -> None:
    other = redis_server.new_database()
    async with impatient(redis_url) as mine, impatient(other) as theirs:
        await mine.set("key", "value", px=60_000)
        assert await mine.get("key") == b"value"
        assert await theirs.get("key") is None


async def test_a_frozen_redis_answers_after_the_thaw(redis_server: RedisServer, redis_url: str) -> None:
    async with impatient(redis_url) as client:
        redis_server.freeze()
        with pytest.raises(RedisTimeoutError):
            await client.set("key", "value")
        redis_server.thaw()
        assert await client.get("key") in {None, b"value"}


async def test_a_killed_redis_refuses_and_comes_back_empty(redis_server: RedisServer, redis_url: str) -> None:
    async with impatient(redis_url) as client:
        await client.set("key", "value")
        redis_server.kill()
        with pytest.raises(RedisConnectionError):
            await client.get("key")
        redis_server.restart()
        assert await client.get("key") is None


def test_a_stopped_server_leaves_nothing_behind() -> None:
    with PostgresServer() as server:
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
        server.freeze()
    assert not any(process.is_running() for process in processes)
    assert not server.folder.exists()
    with pytest.raises(ServerFailed):
        _ = server.pid


@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_servers_end_with_the_process_that_started_them(ending: str) -> None:
    script = (
        "import os\nfrom tests.servers import PostgresServer, RedisServer\n"
        "for server in PostgresServer(), RedisServer():\n    print(server.pid, server.folder, flush=True)\n"
        f"{ending}\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    started = dict(line.split() for line in done.stdout.splitlines())
    assert len(started) == 2, done.stderr
    _, alive = psutil.wait_procs(
        [psutil.Process(int(pid)) for pid in started if psutil.pid_exists(int(pid))], timeout=10
    )
    assert not alive
    for folder in started.values():
        shutil.rmtree(folder, ignore_errors=True)  # only a process that ends in order deletes it itself
