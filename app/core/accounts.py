"""Users and their keys: made, changed and ended. What ends is refused from the next request on, everywhere."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from app.core.api_keys import digest_of, new_api_key
from app.core.callers import Callers
from app.core.run import Caller
from app.core.security import PasswordHasher
from app.db.api_keys import ApiKeyRow, add_api_key, delete_api_key, delete_api_keys_of, list_api_keys
from app.db.async_session import Database
from app.db.budgets import forget_budgets
from app.db.conversations import delete_conversations_of
from app.db.models import Role
from app.db.paging import Page
from app.db.users import (
    UserRow,
    bump_token_version,
    create_user,
    delete_user,
    disable_user,
    enable_user,
    get_user,
    list_users,
    set_password,
    update_user,
)
from app.errors import NotFound

__all__ = ["Accounts", "ApiKeyRow", "KeyWishes", "UserRow"]


@dataclass(frozen=True, slots=True)
class KeyWishes:
    """What a new API key shall be."""

    name: str
    expires_in_days: float | None = None
    agents: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    chat_ui: bool = False


class Accounts:
    """The only way to change who may come in.

    A new password, another role, disabling and deleting end every token and every API key of the user. After the
    commit, and before the change is acknowledged, every process forgets what it knew of credentials.
    """

    def __init__(
        self, database: Database, passwords: PasswordHasher, callers: Callers, *, rows_at_once: int = 2000
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._callers = callers
        self._rows_at_once = rows_at_once
        """Of a user who is being deleted, in one transaction: on SQLite nobody else writes meanwhile."""

    async def create_user(self, *, username: str, password: str, role: Role) -> UserRow:
        """Add a user. Raises `Conflict` when the name, in any spelling, is taken."""
        hashed = await self._passwords.hash(password)
        async with self._database.write() as session:
            return await create_user(session, username=username, password_hash=hashed, role=role)

    async def users(self, *, limit: int, cursor: str | None) -> Page[UserRow]:
        """A page of users, oldest first. Raises `InvalidFields` for a cursor that no page gave out."""
        async with self._database.read() as session:
            return await list_users(session, limit=limit, cursor=cursor)

    async def user(self, user_id: str) -> UserRow:
        """One user. Raises `NotFound`."""
        async with self._database.read() as session:
            user = await get_user(session, user_id)
        if user is None:
            raise NotFound("there is no such user")
        return user

    async def change_user(
        self,
        user_id: str,
        *,
        username: str | None = None,
        role: Role | None = None,
        password: str | None = None,
        disabled: bool | None = None,
    ) -> UserRow:
        """Change what is given, all of it or nothing.

        Raises `NotFound`, or `Conflict` when the name is taken or no active administrator would be left.
        """
        hashed = None if password is None else await self._passwords.hash(password)
        async with self._database.write() as session:
            before = await get_user(session, user_id)
            after = await update_user(session, user_id, username=username, role=role)
            if hashed is not None:
                after = await set_password(session, user_id, hashed)
            if disabled is not None and disabled != after.disabled:
                after = await (disable_user if disabled else enable_user)(session, user_id)
            ended = before is not None and before.token_version != after.token_version
            if ended:
                keys = await list_api_keys(session, user_id=user_id)
                await delete_api_keys_of(session, user_id)
                await forget_budgets(session, [f"key:{key.id}" for key in keys])
        if ended or (before is not None and before.username != after.username):
            await self._callers.forget_everywhere()
        return after

    async def delete_user(self, user_id: str) -> None:
        """Remove a user with all keys and conversations.

        The user is disabled first and removed last, since the conversations may be too many for one transaction. If it
        fails between, the user stays disabled, with what is left of the conversations; a second call finishes.
        Raises `NotFound`, or `Conflict` for the last active administrator.
        """
        await self.change_user(user_id, disabled=True)
        while True:
            async with self._database.write() as session:
                if not await delete_conversations_of(session, user_id, max_rows=self._rows_at_once):
                    break
            # Others want to write as well.
            await asyncio.sleep(0.02)
        async with self._database.write() as session:
            keys = await list_api_keys(session, user_id=user_id)
            await delete_user(session, user_id)
            await forget_budgets(session, [f"user:{user_id}", *(f"key:{key.id}" for key in keys)])
            # Of prompts that were under way.
            while await delete_conversations_of(session, user_id, max_rows=self._rows_at_once):
                pass
        await self._callers.forget_everywhere()

    async def change_password(self, caller: Caller, *, old: str, new: str, peer: str) -> None:
        """Replace one's own password.

        Raises `NotAuthenticated` where `old` is wrong, and `LimitExceeded` after too many wrong ones: whoever stole
        a token has no more guesses than whoever signs in.
        """
        await self._callers.check_password(caller.username, old, peer=peer)
        await self.change_user(caller.id, password=new)

    async def sign_out_everywhere(self, caller: Caller) -> None:
        """End every token of the caller; the API keys stay."""
        async with self._database.write() as session:
            await bump_token_version(session, caller.id)
        await self._callers.forget_everywhere()

    async def create_key(self, user_id: str, wishes: KeyWishes) -> tuple[ApiKeyRow, str]:
        """A new key, and its text, which exists nowhere else. Raises `Conflict` where the user has too many."""
        row, key = make_key(user_id, wishes)
        async with self._database.write() as session:
            await add_api_key(session, row)
        return row, key

    async def keys(self, user_id: str) -> list[ApiKeyRow]:
        """The user's keys, oldest first."""
        async with self._database.read() as session:
            return await list_api_keys(session, user_id=user_id)

    async def key(self, key_id: str, *, user_id: str) -> ApiKeyRow:
        """One key of the user. Raises `NotFound` also for somebody else's."""
        for key in await self.keys(user_id):
            if key.id == key_id:
                return key
        raise NotFound("there is no such API key")

    async def delete_key(self, key_id: str, *, user_id: str) -> None:
        """End a key. Raises `NotFound` also for somebody else's."""
        async with self._database.write() as session:
            await delete_api_key(session, key_id, user_id=user_id)
            await forget_budgets(session, [f"key:{key_id}"])
        await self._callers.forget_everywhere()


def make_key(user_id: str, wishes: KeyWishes) -> tuple[ApiKeyRow, str]:
    """A new key for the user: the row to be stored, and the text, which exists nowhere else."""
    key_id, key = new_api_key()
    now = datetime.now(UTC)
    row = ApiKeyRow(
        id=key_id,
        user_id=user_id,
        name=wishes.name,
        digest=digest_of(key),
        created_at=now,
        expires_at=None if wishes.expires_in_days is None else now + timedelta(days=wishes.expires_in_days),
        agents=wishes.agents,
        requests_per_minute=wishes.requests_per_minute,
        tokens_per_minute=wishes.tokens_per_minute,
        chat_ui=wishes.chat_ui,
    )
    return row, key
