"""The shape of the database over time: which revision it has, and how it gets to ours.

The only module that knows alembic, and only inside functions: a process that finds nothing to migrate never loads it.
"""

import asyncio
import fcntl
import os
import re
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sqlalchemy import Connection, inspect, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from app.db.engine import IMMEDIATE, async_url, backend_of, create_engine
from app.db.outages import outage_of
from app.errors import BadConfiguration, DatabaseUnavailable

_MIGRATIONS = Path(__file__).parent / "migrations"
# Any number that no other user of the same PostgreSQL database is likely to lock: the bytes of "mnemosin".
_LOCK_KEY = int.from_bytes(b"mnemosin")
_LOCK_POLL_S = 0.1


def head() -> str:
    """Give the revision that this version of the code works with."""
    return _revisions()[-1]


def current(url: str, *, connect_timeout_s: float = 3.0) -> str | None:
    """Give the revision of the database, `None` for an empty one. Starts an event loop: call it from outside of one.

    Raises `BadConfiguration` for a URL that cannot work and `DatabaseUnavailable` if nothing answers.
    """
    return asyncio.run(_current(url, connect_timeout_s))


def upgrade(url: str, *, connect_timeout_s: float = 3.0, lock_timeout_s: float = 60.0) -> bool:
    """Bring the database to `head()`; tell whether this call changed it.

    Of several processes that start at once one migrates and the others wait for it, at most `lock_timeout_s`. All
    migrations happen in one transaction. Starts an event loop: call it from outside of one, or from a thread.
    Raises `BadConfiguration` for a URL that cannot work or a schema newer than the code, and `DatabaseUnavailable`.
    """
    return asyncio.run(_upgrade(url, connect_timeout_s, lock_timeout_s))


def _revisions() -> list[str]:
    # Files are named `0001_what_it_does.py` and form one line, which need not be that of their numbers: several are
    # written at once. A test compares this with what alembic reads.
    after: dict[str | None, str] = {}
    for path in (_MIGRATIONS / "versions").glob("[0-9]*_*.py"):
        before = re.search(r'^down_revision = (?:"(\w+)"|None)$', path.read_text(encoding="utf-8"), re.MULTILINE)
        assert before is not None, f"{path} names no down_revision"
        after[before[1]] = path.name.partition("_")[0]
    line = [after[None]]
    while (following := after.get(line[-1])) is not None:
        line.append(following)
    return line


async def _current(url: str, connect_timeout_s: float) -> str | None:
    if (path := _sqlite_path(url)) is not None and not path.exists():
        return None
    async with _connect(url, connect_timeout_s, command_timeout_s=connect_timeout_s) as connection:
        return await connection.run_sync(_revision)


async def _upgrade(url: str, connect_timeout_s: float, lock_timeout_s: float) -> bool:
    if _is_at_head(await _current(url, connect_timeout_s)):
        return False
    async with _connect(url, connect_timeout_s) as connection:
        if (path := _sqlite_path(url)) is not None:
            with _locked_file(path, lock_timeout_s):
                return await _migrate(connection)
        async with _advisory_lock(connection, lock_timeout_s):
            return await _migrate(connection)


async def _migrate(connection: AsyncConnection) -> bool:
    # Once more, now that nobody else can migrate: it may have happened while this process waited.
    await connection.execution_options(**IMMEDIATE)
    async with connection.begin():
        if _is_at_head(await connection.run_sync(_revision)):
            return False
        await connection.run_sync(_run_alembic)
    return True


def _is_at_head(revision: str | None) -> bool:
    if revision is not None and revision not in _revisions():
        raise BadConfiguration(
            f"DATABASE_URL leads to a database with schema {revision}, which this version (schema {head()}) does not"
            " know; install the version that wrote it or a later one, or restore a backup from before that upgrade"
        )
    return revision == head()


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _run_alembic(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    # `%` begins an interpolation in alembic's configuration.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    command.upgrade(config, "head")


def _sqlite_path(url: str) -> Path | None:
    """Give the file of a SQLite database, `None` for PostgreSQL. Raises `BadConfiguration` where there can be none."""
    if backend_of(url) != "sqlite":
        return None
    name = make_url(async_url(url)).database
    if name in (None, "", ":memory:"):
        raise BadConfiguration("DATABASE_URL names no file; valid example: sqlite+aiosqlite:///data/mnemosine.db")
    path = Path(name).absolute()
    if not path.parent.is_dir():
        raise BadConfiguration(f"DATABASE_URL names a file in {path.parent}, which is not a folder; create it first")
    return path


@asynccontextmanager
async def _connect(
    url: str, connect_timeout_s: float, *, command_timeout_s: float | None = None
) -> AsyncGenerator[AsyncConnection]:
    """Open one connection of our own. Without the pool's statement timeout, since a migration may take its time.

    And without its foreign keys: rebuilding a table, which is how SQLite alters one, would cascade.
    """
    arguments: dict[str, float | None] = {"timeout": connect_timeout_s}
    if backend_of(url) == "postgresql":
        arguments["command_timeout"] = command_timeout_s
    engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
    try:
        async with engine.connect() as connection:
            yield connection
    except Exception as problem:
        if (outage := outage_of(problem)) is not None:
            raise _named(outage, url, problem) from problem
        raise
    finally:
        await engine.dispose()


def _named(outage: DatabaseUnavailable, url: str, problem: BaseException) -> DatabaseUnavailable:
    """`outage` for whoever starts a server: which setting, which server of PostgreSQL, and the cure."""
    if backend_of(url) != "postgresql":
        return outage
    parsed = make_url(async_url(url))
    state = str(getattr(getattr(problem, "orig", problem), "sqlstate", None) or "")
    match state[:2]:
        case "28":
            what = f"refuses the user {parsed.username or 'of this process'}; correct user and password"
        case "3D":
            what = f"has no database {parsed.database}; create it, or correct the name"
        case _:
            what = "does not answer; start it, or correct host and port"
    return DatabaseUnavailable(f"DATABASE_URL: PostgreSQL at {parsed.host or 'localhost'}:{parsed.port or 5432} {what}")


@contextmanager
def _locked_file(path: Path, timeout_s: float) -> Generator[None]:
    """Hold the lock beside the SQLite file. It stays behind: removing a lock file lets two processes hold it."""
    lock = os.open(f"{path}.migrating", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DatabaseUnavailable(f"another process has been migrating for {timeout_s:g} s") from None
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(lock)


@asynccontextmanager
async def _advisory_lock(connection: AsyncConnection, timeout_s: float) -> AsyncGenerator[None]:
    """Hold a lock of the PostgreSQL session; it ends with the connection, however that ends."""
    deadline = time.monotonic() + timeout_s
    while not await _try_lock(connection):
        if time.monotonic() > deadline:
            raise DatabaseUnavailable(f"another process has been migrating for {timeout_s:g} s")
        await asyncio.sleep(_LOCK_POLL_S)
    yield


async def _try_lock(connection: AsyncConnection) -> bool:
    async with connection.begin():
        return bool((await connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY})).scalar())
