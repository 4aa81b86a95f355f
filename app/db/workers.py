"""Which workers live: each has a row as long as it gives signs of life, by the database's clock."""

from collections.abc import Collection

from sqlalchemy import delete, or_
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.clock import from_now, now
from app.db.models import workers
from app.db.upsert import insert_into


async def sign_in(session: AsyncSession, worker: str) -> None:
    """Note that `worker` lives now; one that was struck off for its silence is back."""
    statement = insert_into(workers, dialect=session.get_bind().dialect.name).values(id=worker, seen_at=now(session))
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=[workers.c.id], set_={workers.c.seen_at: statement.excluded.seen_at}
        )
    )


async def strike_off(session: AsyncSession, dead: Collection[str], *, silent_s: float | None) -> None:
    """Remove who is known to be dead, and who was silent for `silent_s` seconds (`None`: nobody for that)."""
    is_gone = workers.c.id.in_(dead)
    if silent_s is not None:
        is_gone = or_(is_gone, workers.c.seen_at < from_now(session, -silent_s))
    await session.execute(delete(workers).where(is_gone))
