"""Answers kept for requests that came with an `Idempotency-Key`, and the leases of those that are being answered."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, delete, exc, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import kept_replies
from app.db.upsert import insert_into
from app.errors import NotFound


@dataclass(frozen=True, slots=True)
class KeptReplyRow:
    """One request. `status`, `headers` and `body` are `None` until it has been answered."""

    id: str
    user_id: str
    request_digest: str
    owner: str
    owned_until: datetime
    expires_at: datetime
    status: int | None = None
    headers: list[list[str]] | None = None
    body: bytes | None = None


_COLUMNS = tuple(kept_replies.c[name] for name in KeptReplyRow.__dataclass_fields__)


async def claim_reply(session: AsyncSession, wanted: KeptReplyRow, *, now: datetime) -> KeptReplyRow:
    """Become the owner of a request, unless it has been answered or a living owner is at it.

    Gives the row as it then is: with our `owner` we are the one to answer. Of several that claim at once one is.
    Raises `NotFound` where the user is gone.
    """
    values: dict[str, Any] = {
        "id": wanted.id,
        "user_id": wanted.user_id,
        "request_digest": wanted.request_digest,
        "owner": wanted.owner,
        "owned_until": wanted.owned_until,
        "expires_at": wanted.expires_at,
    }
    statement = insert_into(kept_replies, dialect=session.get_bind().dialect.name).values(values)
    free = or_(kept_replies.c.expires_at <= now, kept_replies.c.status.is_(None) & (kept_replies.c.owned_until <= now))
    statement = statement.on_conflict_do_update(
        index_elements=[kept_replies.c.id],
        set_={**values, "status": None, "headers": None, "body": None},
        where=free,
    )
    try:
        ours = (await session.execute(statement.returning(*_COLUMNS))).one_or_none()
    except exc.IntegrityError as gone:
        raise NotFound("there is no such user") from gone
    if ours is not None:
        return KeptReplyRow(*ours)
    found = await find_reply(session, wanted.id)
    # Freed between the two statements (PostgreSQL): as if a living owner were at it, so the caller asks again.
    return found or replace(wanted, owner="")


async def find_reply(session: AsyncSession, reply_id: str) -> KeptReplyRow | None:
    """Find a request, answered or not."""
    row = (await session.execute(select(*_COLUMNS).where(kept_replies.c.id == reply_id))).one_or_none()
    return None if row is None else KeptReplyRow(*row)


async def renew_claim(session: AsyncSession, reply_id: str, *, owner: str, owned_until: datetime) -> bool:
    """Stay the owner until `owned_until`; `False` where somebody else is by now."""
    return await _change(session, reply_id, owner, {"owned_until": owned_until})


async def keep_reply(
    session: AsyncSession,
    reply_id: str,
    *,
    owner: str,
    status: int,
    headers: list[list[str]],
    body: bytes,
    expires_at: datetime,
) -> bool:
    """Store the answer; `False` where somebody else is the owner by now, and nothing is stored."""
    values = {"status": status, "headers": headers, "body": body, "expires_at": expires_at}
    return await _change(session, reply_id, owner, values)


async def free_reply(session: AsyncSession, reply_id: str, *, owner: str) -> None:
    """Forget the request, so that the next one runs; what was answered, or has another owner, stays."""
    mine = (kept_replies.c.id == reply_id) & (kept_replies.c.owner == owner) & kept_replies.c.status.is_(None)
    await session.execute(delete(kept_replies).where(mine))


async def delete_expired_replies(session: AsyncSession, *, now: datetime, at_most: int) -> int:
    """Remove some of what has expired, and count it."""
    old = select(kept_replies.c.id).where(kept_replies.c.expires_at <= now).limit(at_most)
    deleted = await session.execute(delete(kept_replies).where(kept_replies.c.id.in_(old.scalar_subquery())))
    return cast("CursorResult[Any]", deleted).rowcount


async def _change(session: AsyncSession, reply_id: str, owner: str, values: dict[str, Any]) -> bool:
    mine = (kept_replies.c.id == reply_id) & (kept_replies.c.owner == owner) & kept_replies.c.status.is_(None)
    changed = await session.execute(update(kept_replies).where(mine).values(**values))
    return cast("CursorResult[Any]", changed).rowcount == 1
