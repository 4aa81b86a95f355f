"""The one clock of leases and signs of life: several machines are compared by the database's."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Interval, func, literal
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import UtcDateTime

_TIME = UtcDateTime()


def now(session: AsyncSession) -> ColumnElement[datetime]:
    """This moment, for a statement of `session`. The processes that share a SQLite file share the machine's clock."""
    if session.get_bind().dialect.name == "postgresql":
        return func.clock_timestamp(type_=_TIME)
    return literal(datetime.now(UTC), _TIME)


def from_now(session: AsyncSession, seconds: float) -> ColumnElement[datetime]:
    """The moment `seconds` from now; a negative number gives one that has passed."""
    more = timedelta(seconds=seconds)
    if session.get_bind().dialect.name == "postgresql":
        return now(session) + literal(more, Interval())
    return literal(datetime.now(UTC) + more, _TIME)
