"""What alembic runs. `app.db.schema` hands a connection over; the `alembic` command needs `-x url=…` instead."""

import asyncio

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.pool import NullPool

from app.db.engine import create_engine
from app.db.models import Base


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # SQLite alters a table by rebuilding it.
        render_as_batch=connection.dialect.name == "sqlite",
        # True on SQLite as well, since our engine begins its transactions itself.
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def _connect_and_migrate(url: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(_migrate)
    await engine.dispose()


_given: Connection | None = context.config.attributes.get("connection")
if _given is not None:
    _migrate(_given)
else:
    asyncio.run(_connect_and_migrate(context.get_x_argument(as_dictionary=True)["url"]))
