"""The one way into the database: a pool of connections, and short transactions on it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from anyio import CancelScope
from sqlalchemy import ExceptionContext, event, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from app import tracing
from app.db.engine import IMMEDIATE, Backend, backend_of, create_engine
from app.db.outages import outage_of
from app.db.postgres_connections import Connector, settle
from app.errors import DatabaseUnavailable

_GOODBYE_S = 2.0


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """How many connections this process may keep, uses now, and has open beyond `pool_size`."""

    pool_size: int
    checked_out: int
    overflow: int


class Database:
    """Short transactions on one pool of connections. Made by `open_database`, which closes it.

    A block of `read()` or `write()` holds one connection, so it contains queries and nothing else: no model call,
    no sleep. Blocks are not nested. Every failure of the database leaves them as `DatabaseUnavailable`; integrity
    errors pass, and the query modules turn them into `Conflict`.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        backend: Backend,
        acquire_timeout_s: float | None,
        lock_timeout_s: float,
        on_wait: Callable[[float], object] | None,
    ) -> None:
        self.backend: Backend = backend
        self._engine = engine
        # A read in one shared in-memory connection would see, and undo, the writes of the others.
        self._shared = not isinstance(engine.pool, QueuePool)
        self._writers = engine.execution_options(**IMMEDIATE)
        # One writer at a time in this process: fair, and woken at once, where SQLite's busy handler sleeps and
        # retries. Between processes the busy handler remains.
        self._turn = asyncio.Lock() if backend == "sqlite" else None
        self._acquire_timeout_s = acquire_timeout_s
        self._lock_timeout_s = lock_timeout_s
        self._on_wait = on_wait
        self._probe: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncSession]:
        """Hold a session that sees one consistent state on SQLite; whatever it writes is rolled back."""
        async with self._transaction(writes=False, commits=False) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncSession]:
        """Hold a session whose work is committed at the end of the block, or rolled back if the block raises.

        The commit is not interrupted by a cancellation: it has happened, or it has failed, before the block is left.
        """
        async with self._transaction(writes=True, commits=True) as session:
            yield session

    async def ping(self, *, timeout_s: float = 0.5) -> None:
        """Show within `timeout_s` that the database answers and takes writes; nothing is kept of it.

        Raises `DatabaseUnavailable`. A probe that hangs is joined by the next caller instead of repeated.
        """
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._write_in_vain(), name="database-ping")
            # Whether anybody still waits for it or not, its failure is not "never retrieved".
            self._probe.add_done_callback(lambda task: task.cancelled() or task.exception())
        probe = self._probe
        await asyncio.wait((probe,), timeout=timeout_s)
        if not probe.done():
            raise DatabaseUnavailable(f"the database did not answer within {timeout_s:g} s")
        probe.result()

    def pool_status(self) -> PoolStatus:
        """Count the connections of this process, as the pool sees them at this moment."""
        pool = self._engine.pool
        if isinstance(pool, QueuePool):
            return PoolStatus(pool.size(), pool.checkedout(), max(0, pool.overflow()))
        return PoolStatus(1, int(self._turn is not None and self._turn.locked()), 0)

    async def _write_in_vain(self) -> None:
        async with self._transaction(writes=True, commits=False) as session:
            if self.backend == "sqlite":
                await session.execute(text("CREATE TABLE mnemosine_ping (written INTEGER)"))
            else:
                # Needs a server that is not a read-only replica, and leaves nothing behind to clean up.
                await session.execute(text("SELECT pg_current_xact_id()"))

    @asynccontextmanager
    async def _transaction(self, *, writes: bool, commits: bool) -> AsyncGenerator[AsyncSession]:
        try:
            async with AsyncExitStack() as stack:
                if tracing.is_on():
                    name = "mnemosine.database.write" if writes else "mnemosine.database.read"
                    stack.enter_context(tracing.span(name, db__system__name=self.backend))
                asked = perf_counter()
                try:
                    if self._turn is not None and (writes or self._shared):
                        await self._take_turn(self._turn)
                        stack.callback(self._turn.release)
                    connection = await self._connect(writes=writes)
                finally:
                    if self._on_wait is not None:
                        self._on_wait(perf_counter() - asked)
                # The transaction belongs to the connection: a `session.commit()` elsewhere would end nothing.
                session = AsyncSession(connection, expire_on_commit=False, join_transaction_mode="rollback_only")
                try:
                    yield session
                except BaseException as problem:
                    await _to_the_end(self._release(connection, problem))
                    raise
                await _to_the_end(self._finish(session, connection, commits=commits))
        except Exception as problem:
            if (outage := outage_of(problem)) is not None:
                raise outage from problem
            raise

    async def _take_turn(self, turn: asyncio.Lock) -> None:
        try:
            async with asyncio.timeout(self._lock_timeout_s):
                await turn.acquire()
        except TimeoutError as waited:
            raise DatabaseUnavailable("the database is busy with other writes; try again in a moment") from waited

    async def _connect(self, *, writes: bool) -> AsyncConnection:
        connection = (self._writers if writes else self._engine).connect()
        async with asyncio.timeout(self._acquire_timeout_s):
            await connection.start()
            try:
                await connection.begin()
            except BaseException as problem:
                await _to_the_end(self._release(connection, problem))
                raise
        return connection

    async def _finish(self, session: AsyncSession, connection: AsyncConnection, *, commits: bool) -> None:
        try:
            if commits:
                await session.flush()
                await connection.commit()
        except BaseException as problem:
            await self._release(connection, problem)
            raise
        await self._release(connection, None)

    async def _release(self, connection: AsyncConnection, problem: BaseException | None) -> None:
        """Roll back what is open and give the connection back, or drop it where its state cannot be trusted."""
        try:
            if self.backend == "postgresql" and problem is not None:
                if not isinstance(problem, Exception):
                    await settle(connection, timeout_s=_GOODBYE_S)
                elif outage_of(problem) is not None:
                    await connection.invalidate()
            # An aiosqlite connection works off its queue in order, so a rollback after a cancelled statement is safe.
            await connection.close()
        except Exception:  # whatever went wrong, the connection must leave the pool's count
            await connection.invalidate()
            await connection.close()

    async def aclose(self) -> None:
        """Close every connection; `open_database` does this."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait((self._probe,))
        await self._engine.dispose()


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, which is bounded, to its end; a cancellation that comes meanwhile is raised after it."""
    task = asyncio.create_task(work, name="database-end")
    cancelled: asyncio.CancelledError | None = None
    # The shield keeps anyio from cancelling again at every turn of the loop.
    with CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as cancellation:
                cancelled = cancellation
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # the cancellation is what the caller hears of
        raise cancelled
    task.result()


@asynccontextmanager
async def open_database(
    url: str,
    *,
    pool_size: int = 20,
    max_overflow: int = 30,
    pool_timeout_s: float = 3.0,
    connect_timeout_s: float = 3.0,
    statement_timeout_s: float = 5.0,
    on_wait: Callable[[float], object] | None = None,
) -> AsyncGenerator[Database]:
    """Open the pool of one process and close it at the end. Nothing is connected before the first use.

    `statement_timeout_s` bounds a statement on PostgreSQL, and the wait for the writer's turn on SQLite. `on_wait`
    gets the seconds that a block waited for its connection, also where it got none.
    Raises `BadConfiguration` for a URL that cannot work; an absent database shows at its first use.
    """
    backend = backend_of(url)
    in_memory = backend == "sqlite" and make_url(url).database in (None, "", ":memory:")
    pool: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": max_overflow,
        "pool_timeout": pool_timeout_s,
        "pool_use_lifo": True,
    }
    connector: Connector | None = None
    if backend == "sqlite":
        # `:memory:` is one shared connection and takes no pool arguments.
        engine = create_engine(url, connect_args={"timeout": statement_timeout_s}, **({} if in_memory else pool))
        event.listen(engine.sync_engine, "connect", _set_pragmas)
    else:
        connector = Connector()
        milliseconds = str(round(statement_timeout_s * 1000))
        engine = create_engine(
            url,
            pool_pre_ping=True,
            connect_args={
                "timeout": connect_timeout_s,
                "async_creator_fn": connector.connect,
                # Ours ends a statement on a server that is frozen, the server's own frees its side.
                "command_timeout": statement_timeout_s,
                "server_settings": {
                    "application_name": "mnemosine",
                    "statement_timeout": milliseconds,
                    "idle_in_transaction_session_timeout": "10000",
                },
            },
            **pool,
        )
        event.listen(engine.sync_engine, "invalidate", _abort)
    event.listen(engine.sync_engine, "handle_error", _keep_when_cancelled)
    database = Database(
        engine,
        backend=backend,
        # The queue and connecting have deadlines of their own; this one, a second later, bounds the pre-ping too.
        acquire_timeout_s=None if backend == "sqlite" else max(pool_timeout_s, connect_timeout_s) + 1.0,
        lock_timeout_s=statement_timeout_s,
        on_wait=on_wait,
    )
    try:
        yield database
    finally:
        await _to_the_end(_close(database, connector))


def _keep_when_cancelled(context: ExceptionContext) -> None:
    # SQLAlchemy drops the connection of a cancelled statement. We bring it in order instead (`Database._release`): a
    # client that leaves would otherwise cost a new connection, and the statement would run on in the server.
    if isinstance(context.original_exception, asyncio.CancelledError):
        context.is_disconnect = False


def _set_pragmas(connection: Any, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    # FULL rather than NORMAL: what a client was told is stored survives a power cut. It costs one fsync a commit,
    # and commits are few because run rows are written in groups.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "journal_size_limit=67108864"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _abort(connection: Any, _: ConnectionPoolEntry, __: BaseException | None) -> None:
    # A polite goodbye to a server that does not answer would cost two more seconds.
    connection.driver_connection.terminate()


async def _close(database: Database, connector: Connector | None) -> None:
    if connector is None:
        await database.aclose()
        return
    # A frozen server does not say goodbye; its connections are cut instead.
    with suppress(TimeoutError):
        async with asyncio.timeout(_GOODBYE_S):
            await database.aclose()
    await connector.aclose()
