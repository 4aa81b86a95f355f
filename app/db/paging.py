"""Lists that are read page by page, ordered by a time and an id."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Column, Row, Select, literal, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import FieldFault, InvalidFields

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows of a list, and where to go on; `next_cursor` is `None` on the last page."""

    rows: tuple[T, ...]
    next_cursor: str | None


async def read_page(
    session: AsyncSession,
    query: Select[Any],
    make: Callable[[Row[Any]], T],
    *,
    order: tuple[Column[Any], Column[Any]],
    newest_first: bool,
    limit: int | None,
    cursor: str | None,
) -> Page[T]:
    """At most `limit` rows of `query`, after the page that ended with `cursor`.

    `order` is the time and the id that the list is ordered by; both are among the columns of `query`.
    Raises `InvalidFields` for a cursor that no page gave out.
    """
    at, row_id = order
    query = query.order_by(at.desc(), row_id.desc()) if newest_first else query.order_by(at, row_id)
    if cursor is not None:
        last_at, last_id = _decoded(cursor)
        here, last = tuple_(at, row_id), tuple_(literal(last_at, at.type), literal(last_id, row_id.type))
        query = query.where(here < last if newest_first else here > last)
    if limit is not None:
        query = query.limit(limit + 1)
    rows = list((await session.execute(query)).all())
    more = limit is not None and len(rows) > limit
    rows = rows[:limit]
    next_cursor = _encoded(getattr(rows[-1], at.name), getattr(rows[-1], row_id.name)) if more and rows else None
    return Page(tuple(make(row) for row in rows), next_cursor)


def _encoded(at: datetime, row_id: str) -> str:
    """Name the place after this row, in a form that clients hand back unread."""
    return urlsafe_b64encode(f"{at.isoformat()}|{row_id}".encode()).rstrip(b"=").decode()


def _decoded(cursor: str) -> tuple[datetime, str]:
    """Give the time and the id back. Raises `InvalidFields` for anything that `_encoded` did not make."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        time, _, row_id = urlsafe_b64decode(padded).decode().partition("|")
        at = datetime.fromisoformat(time)
    except ValueError:  # bad alphabet, padding, UTF-8 or time: all of them are ValueErrors
        at, row_id = None, ""
    if at is None or at.tzinfo is None or not row_id or "\0" in row_id:
        fault = FieldFault("cursor", "must be the next_cursor of an earlier page, or left out for the first page")
        raise InvalidFields("cursor is not one that this list gave out", errors=[fault])
    return at, row_id
