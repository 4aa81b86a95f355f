"""Answers of the Responses API as stored, with what was said up to there. Every query names the owner."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, delete, exc, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import responses
from app.errors import NotFound


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """One answer. `body` is the response object, `talk` what the next one goes on from; both are JSON."""

    id: str
    user_id: str
    created_at: datetime
    body: str
    talk: str


_COLUMNS = tuple(responses.c[name] for name in ResponseRow.__dataclass_fields__)


async def add_response(session: AsyncSession, row: ResponseRow, *, keep_after: datetime) -> None:
    """Store an answer, and forget those of the same user that are older than `keep_after`.

    Raises `NotFound` where the user was deleted while the model thought.
    """
    expired = delete(responses).where(responses.c.user_id == row.user_id, responses.c.created_at < keep_after)
    await session.execute(expired)
    try:
        await session.execute(insert(responses), asdict(row))
    except exc.IntegrityError as gone:
        raise NotFound("there is no such user") from gone


async def get_response(
    session: AsyncSession, response_id: str, *, user_id: str, keep_after: datetime
) -> ResponseRow | None:
    """Find an answer of this user that is not older than `keep_after`."""
    query = select(*_COLUMNS).where(
        responses.c.id == response_id, responses.c.user_id == user_id, responses.c.created_at >= keep_after
    )
    row = (await session.execute(query)).one_or_none()
    return None if row is None else ResponseRow(*row)


async def delete_response(session: AsyncSession, response_id: str, *, user_id: str) -> bool:
    """Forget an answer of this user; gives whether it was there."""
    query = delete(responses).where(responses.c.id == response_id, responses.c.user_id == user_id)
    return cast("CursorResult[Any]", await session.execute(query)).rowcount > 0
