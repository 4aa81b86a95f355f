"""Connections to PostgreSQL that survive a caller who leaves in the middle: of opening one, or of an exchange."""

import asyncio
from collections.abc import Coroutine
from typing import Any, cast
from weakref import WeakSet

from sqlalchemy.ext.asyncio import AsyncConnection


class Connector:
    """Opens connections in a way that no caller can cancel half-way, and knows which are open.

    asyncpg 0.32 reports an unhandled "unexpected connection_lost() call" to the loop when it is cancelled while it
    asks for TLS. Its own timeout still bounds each attempt; what arrives after its caller has left is closed.
    """

    def __init__(self) -> None:
        self._attempts: set[asyncio.Task[Any]] = set()
        self._open: WeakSet[Any] = WeakSet()

    async def connect(self, *args: Any, **options: Any) -> Any:
        """Open one, as `asyncpg.connect` does."""
        import asyncpg  # pyright: ignore[reportMissingTypeStubs]  # an extra: absent where PostgreSQL is not used

        opening = cast("Coroutine[Any, Any, Any]", asyncpg.connect(*args, **options))  # pyright: ignore[reportUnknownMemberType]
        attempt = asyncio.create_task(opening)
        self._attempts.add(attempt)
        attempt.add_done_callback(self._attempts.discard)
        try:
            connection = await asyncio.shield(attempt)
        except asyncio.CancelledError:
            attempt.add_done_callback(_close_unused)
            raise
        self._open.add(connection)
        return connection

    async def aclose(self) -> None:
        """Cut what is still open, or still being opened, when the pool is gone or did not close in time."""
        if self._attempts:
            await asyncio.wait(self._attempts)
        for connection in self._open:
            connection.terminate()


def _close_unused(attempt: asyncio.Task[Any]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


async def settle(connection: AsyncConnection, *, timeout_s: float) -> None:
    """Bring a PostgreSQL connection that was cancelled in the middle of an exchange back to its beginning.

    asyncpg has asked the server to end the statement, and waits for that before the rollback; then comes the reset
    that its own pool does before it hands a connection on. It is also the fence: a cancellation that reaches the
    server late hits it, not the next caller.
    """
    async with asyncio.timeout(timeout_s):
        driver: Any = (await connection.get_raw_connection()).driver_connection
        await connection.rollback()
        # A BEGIN whose answer nobody saw: SQLAlchemy does not know of it, and asyncpg takes the next one for nested.
        # The attribute is private; without it the reset repairs the connection as well, but complains to the loop.
        if driver.is_in_transaction() or getattr(driver, "_top_xact", None) is not None:
            await connection.invalidate()
        else:
            await driver.reset()
