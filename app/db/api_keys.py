"""API keys as stored: who they belong to, what they may do, when they end. The key itself is never here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import CursorResult, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Role, api_keys, users
from app.errors import Conflict, NotFound

MAX_KEYS_PER_USER = 100
"""One page of them; whoever needs more needs more users."""


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """One key. `digest` is the SHA-256 of the whole key, in hexadecimal digits."""

    id: str
    user_id: str
    name: str
    digest: str
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    agents: tuple[str, ...] | None = None
    """The only agents that it may use; `None` for all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    chat_ui: bool = False


@dataclass(frozen=True, slots=True)
class KeyOwner:
    """What the credentials of a user have to be checked against."""

    id: str
    username: str
    role: Role
    disabled: bool


_COLUMNS = tuple(api_keys.c[name] for name in ApiKeyRow.__dataclass_fields__)


async def add_api_key(session: AsyncSession, key: ApiKeyRow) -> None:
    """Store a key. Raises `Conflict` where the user has as many as one may have, and `NotFound` without the user."""
    # Locked, so that two keys made at once cannot both be the last one.
    owner = select(users.c.id).where(users.c.id == key.user_id).with_for_update()
    if (await session.execute(owner)).one_or_none() is None:
        raise NotFound("there is no such user")
    held = select(func.count()).select_from(api_keys).where(api_keys.c.user_id == key.user_id)
    if (await session.execute(held)).scalar_one() >= MAX_KEYS_PER_USER:
        raise Conflict(f"a user may have {MAX_KEYS_PER_USER} keys; delete one that is not needed any more")
    values = asdict(key)
    values["agents"] = None if key.agents is None else list(key.agents)
    await session.execute(insert(api_keys), values)


async def find_api_key(session: AsyncSession, key_id: str) -> tuple[ApiKeyRow, KeyOwner] | None:
    """Find a key by its id, with whom it belongs to."""
    query = (
        select(*_COLUMNS, users.c.id, users.c.username, users.c.role, users.c.disabled_at.is_not(None))
        .join(users, users.c.id == api_keys.c.user_id)
        .where(api_keys.c.id == key_id)
    )
    row = (await session.execute(query)).one_or_none()
    if row is None:
        return None
    return _made(row[: len(_COLUMNS)]), KeyOwner(*row[len(_COLUMNS) :])


async def list_api_keys(session: AsyncSession, *, user_id: str) -> list[ApiKeyRow]:
    """Give every key of the user, oldest first."""
    query = select(*_COLUMNS).where(api_keys.c.user_id == user_id).order_by(api_keys.c.created_at, api_keys.c.id)
    return [_made(row) for row in (await session.execute(query)).all()]


async def delete_api_key(session: AsyncSession, key_id: str, *, user_id: str) -> None:
    """Remove a key of this user. Raises `NotFound` where there is none, or it is somebody else's."""
    mine = (api_keys.c.id == key_id) & (api_keys.c.user_id == user_id)
    deleted = await session.execute(delete(api_keys).where(mine))
    if cast("CursorResult[Any]", deleted).rowcount == 0:
        raise NotFound("there is no such API key")


async def delete_api_keys_of(session: AsyncSession, user_id: str) -> None:
    """Remove every key of the user."""
    await session.execute(delete(api_keys).where(api_keys.c.user_id == user_id))


async def note_use(session: AsyncSession, used: Mapping[str, datetime]) -> None:
    """Write when keys were last used; an older moment never replaces a younger one. Keys that are gone are skipped."""
    moment = bindparam("moment", type_=api_keys.c.last_used_at.type)
    statement = (
        update(api_keys)
        .where(
            api_keys.c.id == bindparam("key"), or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < moment)
        )
        .values(last_used_at=moment)
    )
    # In one order, so that two workers that write at once do not wait for each other.
    await (await session.connection()).execute(statement, [{"key": key, "moment": used[key]} for key in sorted(used)])


def _made(row: Any) -> ApiKeyRow:
    values: dict[str, Any] = dict(zip(ApiKeyRow.__dataclass_fields__, row, strict=True))
    agents: list[str] | None = values["agents"]
    values["agents"] = None if agents is None else tuple(agents)
    return ApiKeyRow(**values)
