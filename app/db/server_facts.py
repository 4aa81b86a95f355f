"""What a PostgreSQL server says of itself that our settings must agree with."""

from collections.abc import Callable
from dataclasses import dataclass
from time import time

from sqlalchemy import text

from app.db.async_session import open_database

_FACTS = text("""
    SELECT CAST(current_setting('max_connections') AS integer),
           CAST(current_setting('superuser_reserved_connections') AS integer),
           CAST(coalesce(current_setting('reserved_connections', true), '0') AS integer),
           (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
           (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
""")
_CLOCK = text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)")


@dataclass(frozen=True, slots=True)
class PostgresFacts:
    """What one server allows, and what time it has."""

    max_connections: int
    usable_connections: int
    """Those that are left to our user and database: without the reserved ones, within their own limits."""
    ahead_s: float
    """How far its clock is ahead of ours, at least; negative where it is behind, 0 where both may be the same."""


async def read_postgres_facts(url: str, *, clock: Callable[[], float] = time) -> PostgresFacts:
    """Ask the server of `url`. Raises `DatabaseUnavailable`."""
    async with open_database(url, pool_size=1, max_overflow=0) as database, database.read() as session:
        allowed, reserved, also_reserved, *limits = (await session.execute(_FACTS)).one()
        asked = clock()
        theirs: float = (await session.execute(_CLOCK)).scalar_one()
        answered = clock()
    usable = min([allowed - reserved - also_reserved, *(limit for limit in limits if limit >= 0)])
    return PostgresFacts(allowed, usable, theirs - answered if theirs > answered else min(0.0, theirs - asked))
