"""Everything that is opened, in one place: opened in order, closed in reverse."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any

from app.config import Settings
from app.core.cache_service import CacheService
from app.core.callers import Callers
from app.core.metrics import Metrics
from app.core.run_log import RunLog
from app.core.security import PasswordHasher, TokenSigner, generate_password, open_data_dir, signing_key
from app.core.vitals import watch_loop
from app.db import schema
from app.db.async_session import Database, open_database
from app.db.users import create_first_admin
from app.errors import MnemosineError
from app.stores.board import Board
from app.stores.memory import MemoryStore

if TYPE_CHECKING:
    from app.core.agent_pool import AgentPool
    from app.core.agents import Agents
    from app.core.prompt_service import PromptService

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentRoom:
    """What needs Pydantic AI. It is imported and made by a thread after the socket is open (about 1 s of CPU)."""

    agents: "Agents"
    prompts: "PromptService"


@dataclass(frozen=True, slots=True)
class Runtime:
    """All live resources of one worker. Made by `open_runtime`, which owns them."""

    settings: Settings
    database: Database
    callers: Callers
    passwords: PasswordHasher
    runs: RunLog
    metrics: Metrics
    parts: dict[str, Callable[[], Mapping[str, Any]]]
    """What rooms say of themselves in the performance API: `agent_pool` and `cache`, in the contract's words."""
    cache: CacheService
    agent_room: asyncio.Future[AgentRoom]
    """Await it through `asyncio.shield`: it is everybody's."""
    started_at: float
    """On the monotonic clock."""


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
    open_data_dir(settings.data_dir)
    _signing_key(settings)
    await asyncio.to_thread(schema.upgrade, settings.database_url)
    chosen = settings.admin_password.get_secret_value() if settings.admin_password else None
    password = chosen or generate_password()
    async with AsyncExitStack() as stack:
        hasher = PasswordHasher()
        stack.push_async_callback(hasher.aclose)
        database = await stack.enter_async_context(open_database(settings.database_url))
        hashed = await hasher.hash(password)
        async with database.write() as session:
            created = await create_first_admin(session, username=settings.admin_username, password_hash=hashed)
    if not created:
        return None
    return FirstStart(settings.admin_username, None if chosen else password)


@asynccontextmanager
async def open_runtime(settings: Settings, metrics: Metrics | None = None) -> AsyncGenerator[Runtime]:
    """Open every resource of one worker and close them in reverse, whatever happens in between."""
    metrics = metrics or Metrics()
    parts: dict[str, Callable[[], Mapping[str, Any]]] = {"agent_pool": dict, "cache": dict}
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            open_database(
                settings.database_url,
                pool_size=settings.db_pool_size,
                max_overflow=settings.db_max_overflow,
                on_wait=metrics.histogram("database_wait_seconds").record,
            )
        )
        passwords = PasswordHasher()
        stack.push_async_callback(passwords.aclose)
        tokens = TokenSigner(_signing_key(settings), lifetime_s=settings.access_token_expire_minutes * 60)
        runs = RunLog(database, worker=f"{socket.gethostname()}:{os.getpid()}")
        stack.push_async_callback(runs.aclose)
        runs.start()
        board = stack.enter_context(Board(settings.data_dir / "board"))
        cache = CacheService(
            MemoryStore(max_bytes=settings.cache_max_bytes),
            board,
            enabled=settings.cache_enabled,
            ttl_s=settings.cache_ttl,
        )
        cache.start()
        # First the opening task ends, then what it opened is closed.
        room_stack = await stack.enter_async_context(AsyncExitStack())
        parts["cache"] = cache.numbers
        agent_room = asyncio.create_task(
            _open_agent_room(settings, runs, cache, metrics, parts, room_stack), name="agent-room"
        )
        stack.push_async_callback(_end, agent_room)
        stack.push_async_callback(cache.aclose)
        stack.push_async_callback(_end, asyncio.create_task(watch_loop(metrics), name="loop-watch"))
        yield Runtime(
            settings=settings,
            database=database,
            callers=Callers(database, passwords, tokens),
            passwords=passwords,
            runs=runs,
            metrics=metrics,
            parts=parts,
            cache=cache,
            agent_room=agent_room,
            started_at=monotonic(),
        )


async def _open_agent_room(
    settings: Settings,
    runs: RunLog,
    cache: CacheService,
    metrics: Metrics,
    parts: dict[str, Callable[[], Mapping[str, Any]]],
    stack: AsyncExitStack,
) -> AgentRoom:
    await asyncio.to_thread(import_module, "app.core.prompt_service")
    from app.core.agent_pool import AgentPool
    from app.core.agents import Agents
    from app.core.models import Models
    from app.core.prompt_service import PromptService

    models = Models()
    stack.push_async_callback(models.aclose)
    agents = Agents((), default_model=settings.default_model)
    pool = AgentPool(models, capacity=settings.agent_pool_size)
    stack.callback(pool.clear)
    parts["agent_pool"] = lambda: _pool_numbers(pool)
    try:
        for agent in agents:
            # The first use of a provider imports hundreds of modules; in a thread, it stalls nobody.
            await asyncio.to_thread(models.get, agent.model)
    except MnemosineError as error:
        _log.error("no prompt can be answered: %s", error.detail)
        raise
    prompts = PromptService(
        agents,
        pool,
        models,
        runs,
        cache,
        allowed_models={settings.default_model, "offline"},
        model_timeout_s=settings.model_timeout_seconds,
        on_model_call=metrics.record_model_call,
    )
    return AgentRoom(agents, prompts)


def _signing_key(settings: Settings) -> bytes:
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    return signing_key(settings.data_dir)


def _pool_numbers(pool: "AgentPool") -> dict[str, Any]:
    counts = pool.counts
    asked = counts.hits + counts.misses
    return {
        "capacity": pool.capacity,
        "size": len(pool),
        "in_use": pool.in_use,
        "hits": counts.hits,
        "misses": counts.misses,
        "evictions": counts.evictions,
        "hit_ratio": counts.hits / asked if asked else 0.0,
    }


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
