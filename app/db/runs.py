"""The record of runs: who asked which agent, what it used and cost, and how it ended. Never what was said."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import CursorResult, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import RunStatus, runs, workers
from app.db.paging import Page, read_page
from app.db.upsert import insert_into


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run. `cost_usd` is `None` where the price is not known; `worker` is the process that runs it."""

    id: str
    user_id: str
    agent: str
    model: str
    worker: str
    status: RunStatus
    started_at: datetime
    conversation_id: str | None = None
    cached: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0
    cost_usd: Decimal | None = None
    error_code: str | None = None
    finished_at: datetime | None = None
    duration_ms: float | None = None
    model_ms: float | None = None


_COLUMNS = tuple(runs.c[name] for name in RunRow.__dataclass_fields__)
# What may still change after a run was first written.
_OUTCOME = (
    *("model", "conversation_id", "status", "cached", "input_tokens", "output_tokens", "requests", "cost_usd"),
    *("error_code", "finished_at", "duration_ms", "model_ms"),
)


_NAMES = tuple(RunRow.__dataclass_fields__)


@lru_cache
def _upsert(dialect: str) -> Any:
    statement = insert_into(runs, dialect=dialect)
    return statement.on_conflict_do_update(
        index_elements=[runs.c.id],
        set_={name: statement.excluded[name] for name in _OUTCOME},
        # Two comparisons instead of IN, which cannot be sent for many rows at once.
        where=or_(runs.c.status == "running", runs.c.status == "interrupted")
        & (statement.excluded.status != "running"),
    )


async def save_runs(session: AsyncSession, rows: Sequence[RunRow]) -> None:
    """Write many runs in one go: new ones are added, unfinished ones get their outcome.

    Safe to repeat after a commit whose fate is unknown. A finished run is never changed; a run that was taken for
    interrupted and finished after all is finished. `rows` holds each id at most once.
    """
    if not rows:
        return
    statement = _upsert(session.get_bind().dialect.name)
    # Not `asdict`, which copies every value deeply: it was a third of the cost of a row.
    await session.execute(statement, [{name: getattr(row, name) for name in _NAMES} for row in rows])


async def mark_interrupted(session: AsyncSession) -> int:
    """End the runs whose worker is not among the `workers` any more, and count them."""
    its_worker = select(workers.c.id).where(workers.c.id == runs.c.worker)
    ended = await session.execute(
        update(runs)
        .where(runs.c.status == "running", ~its_worker.exists())
        .values(status="interrupted", error_code="interrupted", finished_at=datetime.now(UTC))
    )
    return cast("CursorResult[Any]", ended).rowcount


async def get_run(session: AsyncSession, run_id: str, *, user_id: str | None) -> RunRow | None:
    """Find a run of this user, or of anybody where `user_id` is `None`."""
    query = select(*_COLUMNS).where(runs.c.id == run_id)
    if user_id is not None:
        query = query.where(runs.c.user_id == user_id)
    row = (await session.execute(query)).one_or_none()
    return None if row is None else RunRow(*row)


async def list_runs(
    session: AsyncSession,
    *,
    user_id: str | None,
    limit: int = 50,
    cursor: str | None = None,
    status: RunStatus | None = None,
    agent: str | None = None,
) -> Page[RunRow]:
    """Give at most `limit` runs, newest first, after the page that ended with `cursor`.

    `user_id=None` gives everybody's. Raises `InvalidFields` for a cursor that no page gave out.
    """
    query = select(*_COLUMNS)
    if user_id is not None:
        query = query.where(runs.c.user_id == user_id)
    if status is not None:
        query = query.where(runs.c.status == status)
    if agent is not None:
        query = query.where(runs.c.agent == agent)
    order = runs.c.started_at, runs.c.id
    return await read_page(
        session, query, lambda row: RunRow(*row), order=order, newest_first=True, limit=limit, cursor=cursor
    )
