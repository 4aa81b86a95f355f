"""People who may sign in. Passwords arrive here already hashed."""

import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

from sqlalchemy import ColumnElement, CursorResult, Row, delete, exc, exists, literal, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Role, users
from app.db.paging import Page, read_page
from app.db.upsert import insert_into
from app.errors import Conflict, NotFound


@dataclass(frozen=True, slots=True)
class UserRow:
    """One user as stored. `token_version` is part of every token; raising it ends all of them."""

    id: str
    username: str
    password_hash: str
    role: Role
    token_version: int
    disabled_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def disabled(self) -> bool:
        """Whether the user may not sign in."""
        return self.disabled_at is not None


_COLUMNS = tuple(users.c[name] for name in UserRow.__dataclass_fields__)


async def create_user(session: AsyncSession, *, username: str, password_hash: str, role: Role = "user") -> UserRow:
    """Add a user. Raises `Conflict` when the name, in any spelling, is taken."""
    created = await _insert(session, username, password_hash, role)
    if created is None:
        raise Conflict(f"the username {username!r} is taken")
    return created


async def has_admin(session: AsyncSession) -> bool:
    """Tell whether there is an administrator."""
    return bool((await session.execute(select(exists().where(users.c.role == "admin")))).scalar())


async def create_first_admin(session: AsyncSession, *, username: str, password_hash: str) -> bool:
    """Add an administrator if there is none yet; tell whether this call did it.

    Of several processes that start at once exactly one does: the unique name decides.
    """
    admins = exists().where(users.c.role == "admin")
    return await _insert(session, username, password_hash, "admin", unless=admins) is not None


async def get_user(session: AsyncSession, user_id: str) -> UserRow | None:
    """Find a user by id."""
    return _user((await session.execute(select(*_COLUMNS).where(users.c.id == user_id))).one_or_none())


async def find_user(session: AsyncSession, username: str) -> UserRow | None:
    """Find a user by name, whatever its case."""
    same_name = users.c.username_key == username_key(username)
    return _user((await session.execute(select(*_COLUMNS).where(same_name))).one_or_none())


async def list_users(session: AsyncSession, *, limit: int = 50, cursor: str | None = None) -> Page[UserRow]:
    """Give at most `limit` users, oldest first, after the page that ended with `cursor`.

    Raises `InvalidFields` for a cursor that no page gave out.
    """
    order = users.c.created_at, users.c.id
    return await read_page(
        session, select(*_COLUMNS), _made, order=order, newest_first=False, limit=limit, cursor=cursor
    )


async def update_user(
    session: AsyncSession, user_id: str, *, username: str | None = None, role: Role | None = None
) -> UserRow:
    """Change what is given. A new role ends the user's tokens.

    Raises `NotFound`, or `Conflict` when the name is taken or no active administrator would be left.
    """
    values: dict[str, Any] = {}
    if username is not None:
        values |= {"username": username, "username_key": username_key(username)}
    if role is not None:
        before = await _required(session, user_id)
        if before.role != role:
            await _keep_an_admin(session, user_id)
            values |= {"role": role, "token_version": users.c.token_version + 1}
    try:
        return await _update(session, user_id, values)
    except exc.IntegrityError as taken:
        raise Conflict(f"the username {username!r} is taken") from taken


async def set_password(session: AsyncSession, user_id: str, password_hash: str) -> UserRow:
    """Replace the password and end the user's tokens. Raises `NotFound`."""
    values = {"password_hash": password_hash, "token_version": users.c.token_version + 1}
    return await _update(session, user_id, values)


async def bump_token_version(session: AsyncSession, user_id: str) -> UserRow:
    """End the user's tokens. Raises `NotFound`."""
    return await _update(session, user_id, {"token_version": users.c.token_version + 1})


async def disable_user(session: AsyncSession, user_id: str) -> UserRow:
    """Keep the user from signing in and end the tokens.

    Raises `NotFound`, or `Conflict` when no active administrator would be left.
    """
    await _keep_an_admin(session, user_id)
    values = {"disabled_at": datetime.now(UTC), "token_version": users.c.token_version + 1}
    return await _update(session, user_id, values)


async def enable_user(session: AsyncSession, user_id: str) -> UserRow:
    """Let a disabled user sign in again. Raises `NotFound`."""
    return await _update(session, user_id, {"disabled_at": None})


async def delete_user(session: AsyncSession, user_id: str) -> None:
    """Remove a user; the runs stay, under an id that now means nobody.

    Raises `NotFound`, or `Conflict` when no active administrator would be left.
    """
    await _keep_an_admin(session, user_id)
    deleted = await session.execute(delete(users).where(users.c.id == user_id))
    if cast("CursorResult[Any]", deleted).rowcount == 0:
        raise NotFound(_ABSENT)


def username_key(username: str) -> str:
    """The one form of all spellings of a name: neither case nor width tells users apart."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", username).casefold())


_ABSENT = "there is no such user"


async def _insert(
    session: AsyncSession, username: str, password_hash: str, role: Role, *, unless: ColumnElement[bool] | None = None
) -> UserRow | None:
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "id": uuid4().hex,
        "username": username,
        "username_key": username_key(username),
        "password_hash": password_hash,
        "role": role,
        "token_version": 1,
        "created_at": now,
        "updated_at": now,
    }
    source = select(*(literal(value, users.c[name].type) for name, value in values.items()))
    # SQLite takes the ON of ON CONFLICT for a join unless there is a WHERE (https://sqlite.org/lang_upsert.html).
    source = source.where(~unless if unless is not None else literal(1) == 1)
    # A conflict that raises would end the whole transaction on PostgreSQL.
    statement = (
        insert_into(users, dialect=session.get_bind().dialect.name)
        .from_select(list(values), source)
        .on_conflict_do_nothing()
        .returning(*_COLUMNS)
    )
    return _user((await session.execute(statement)).one_or_none())


async def _update(session: AsyncSession, user_id: str, values: dict[str, Any]) -> UserRow:
    statement = update(users).where(users.c.id == user_id).values(updated_at=datetime.now(UTC), **values)
    changed = (await session.execute(statement.returning(*_COLUMNS))).one_or_none()
    if changed is None:
        raise NotFound(_ABSENT)
    return _made(changed)


async def _required(session: AsyncSession, user_id: str) -> UserRow:
    user = await get_user(session, user_id)
    if user is None:
        raise NotFound(_ABSENT)
    return user


async def _keep_an_admin(session: AsyncSession, leaving: str) -> None:
    """Raise `Conflict` if `leaving` is the only active administrator; hold the others until the transaction ends."""
    active = select(users.c.id).where(users.c.role == "admin", users.c.disabled_at.is_(None))
    if set((await session.scalars(active.order_by(users.c.id).with_for_update())).all()) == {leaving}:
        raise Conflict("this is the last active administrator; make another user an administrator first")


def _user(row: Row[Any] | None) -> UserRow | None:
    return None if row is None else _made(row)


def _made(row: Row[Any]) -> UserRow:
    return UserRow(*row)
