"""What is made once, before any worker starts: data directory, signing key, schema, administrator."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from app.agent_room import check_models
from app.config import Settings
from app.core.late_imports import import_types_late
from app.core.security import PasswordHasher, generate_password, open_data_dir, signing_key
from app.db import schema
from app.db.async_session import open_database
from app.db.users import create_first_admin, has_admin


@dataclass(frozen=True, slots=True)
class FirstStart:
    """The administrator that the first start made, with the password that is shown this once."""

    username: str
    password: str | None
    """`None` where the operator chose it by `ADMIN_PASSWORD`."""

    def notice(self) -> str:
        """What the terminal shows, once."""
        if self.password is None:
            return f"Administrator {self.username!r} was created with the password from ADMIN_PASSWORD."
        return f"Administrator {self.username!r} was created. The password is shown this once:\n\n    {self.password}\n"


async def prepare(settings: Settings) -> FirstStart | None:
    """Make a new installation ready before any worker starts: data directory, signing key, schema, administrator.

    Safe to run by several processes at once. Gives the new administrator, or `None` where there is one already.
    Raises `BadConfiguration` or `DatabaseUnavailable`.
    """
    if settings.late_imports:
        import_types_late()
    await asyncio.to_thread(check_models, settings)
    open_data_dir(settings.data_dir)
    signing_key_of(settings)
    await asyncio.to_thread(schema.upgrade, settings.database_url)
    chosen = settings.admin_password.get_secret_value() if settings.admin_password else None
    password = chosen or generate_password()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings.database_url))
        async with database.read() as session:
            if await has_admin(session):
                return None
        hasher = PasswordHasher()
        stack.push_async_callback(hasher.aclose)
        hashed = await hasher.hash(password)
        async with database.write() as session:
            created = await create_first_admin(session, username=settings.admin_username, password_hash=hashed)
    if not created:
        return None
    return FirstStart(settings.admin_username, None if chosen else password)


def signing_key_of(settings: Settings) -> bytes:
    """The key that signs tokens: the operator's, or the one that is made once in the data directory."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    return signing_key(settings.data_dir)
