"""Everything that is opened, in one place: opened in order, closed in reverse."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any

from app import __version__, tracing
from app.agent_room import AgentRoom, follow_reloads, open_agent_room
from app.config import Settings
from app.core.accounts import Accounts
from app.core.api_keys import KeyUses
from app.core.budgets import Budgets
from app.core.cache_service import CacheService
from app.core.callers import Callers
from app.core.chore import Chore
from app.core.conversations import Conversations
from app.core.idempotency import Idempotency
from app.core.login_limits import LoginLimits
from app.core.metrics import Metrics
from app.core.open_streams import OpenStreams
from app.core.picture import fold
from app.core.rate_limiter import RateLimiter
from app.core.reloads import Reloads
from app.core.responses import Responses
from app.core.roll_call import RollCall
from app.core.run_log import RunLog
from app.core.security import PasswordHasher, TokenSigner
from app.core.totals import Totals
from app.core.vitals import watch_loop
from app.db.async_session import Database, open_database
from app.installation import signing_key_of
from app.stores.local import LocalStore
from app.stores.memory import MemoryStore
from app.stores.protocol import SharedStore
from app.stores.scoreboard import Scoreboard

if TYPE_CHECKING:
    from app.stores.redis import RedisStore


@dataclass(frozen=True, slots=True)
class Runtime:
    """All live resources of one worker. Made by `open_runtime`, which owns them."""

    settings: Settings
    database: Database
    callers: Callers
    accounts: Accounts
    key_uses: KeyUses
    idempotency: Idempotency
    runs: RunLog
    conversations: Conversations
    metrics: Metrics
    totals: Totals
    """The numbers of everybody; `metrics` is what this worker counts."""
    parts: dict[str, Callable[[], Mapping[str, Any]]]
    """What rooms of this worker say of themselves: `agent_pool` and `cache`, in the contract's words."""
    store: SharedStore
    """What all workers know together."""
    cache: CacheService
    limiter: RateLimiter
    budgets: Budgets
    agent_room: asyncio.Future[AgentRoom]
    """Await it through `asyncio.shield`: it is everybody's."""
    started_at: float
    """On the monotonic clock."""
    draining: asyncio.Event
    """Set when this worker is to end: it is not ready any more, what never ends by itself ends now."""
    last_call: asyncio.Event
    """Set some seconds before what still runs is cancelled: a stream of an answer ends with its `error` event now."""
    responses: Responses
    streams: OpenStreams
    """Answers under way as streams; they end at the last call."""


@asynccontextmanager
async def open_runtime(
    settings: Settings,
    metrics: Metrics | None = None,
    *,
    draining: asyncio.Event | None = None,
    last_call: asyncio.Event | None = None,
) -> AsyncGenerator[Runtime]:
    """Open every resource of one worker and close them in reverse, whatever happens in between."""
    metrics = metrics or Metrics()
    last_call = last_call or asyncio.Event()
    streams = OpenStreams()
    parts: dict[str, Callable[[], Mapping[str, Any]]] = {"agent_pool": dict, "cache": dict}
    async with AsyncExitStack() as stack:
        stack.enter_context(tracing.open_tracing(__version__))
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
        tokens = TokenSigner(signing_key_of(settings), lifetime_s=settings.access_token_expire_minutes * 60)
        worker = f"{socket.gethostname()}:{os.getpid()}:{token_hex(4)}"
        roll_call = RollCall(database, worker=worker)
        stack.push_async_callback(roll_call.aclose)
        runs = RunLog(database, worker=worker)
        stack.push_async_callback(runs.aclose)
        runs.start()
        store = await _open_store(settings)
        stack.push_async_callback(store.aclose)
        conversations = Conversations(
            database,
            wait_s=settings.model_timeout_seconds,
            retention_days=settings.conversation_retention_days,
        )
        stack.push_async_callback(conversations.aclose)
        conversations.start()
        several = settings.workers > 1 or settings.redis_url is not None
        cache = CacheService(
            MemoryStore(max_bytes=settings.cache_max_bytes),
            store,
            enabled=settings.cache_enabled,
            ttl_s=settings.cache_ttl,
            # One process on its own has nobody to share with, and pays nothing for it.
            tier=store if several else None,
        )
        cache.start()
        key_uses = KeyUses(database)
        stack.push_async_callback(key_uses.aclose)
        key_uses.start()

        callers = Callers(
            database,
            passwords,
            tokens,
            LoginLimits(store.take),
            generation=lambda: store.generation("credentials"),
            bump=lambda: store.bump("credentials"),
            on_key_used=key_uses.note,
        )
        stack.push_async_callback(callers.aclose)
        limiter = RateLimiter(
            store.take,
            take_at_once=store.take_at_once,
            requests_per_minute=settings.rate_limit_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            on_refusal=lambda group, limit: metrics.counter("limit_refusals", group, limit).add(),
            on_local_count=metrics.counter("limits_counted_locally").add,
        )
        budgets = Budgets(
            database,
            # Longer than any run, so that none outlives what it has reserved.
            lease_s=settings.model_timeout_seconds + 60,
            changed=callers.forget_everywhere,
            on_refusal=metrics.counter("limit_refusals", "prompts", "budget").add,
        )
        stack.push_async_callback(budgets.aclose)
        # First the opening task ends, then what it opened is closed.
        room_stack = await stack.enter_async_context(AsyncExitStack())
        parts["cache"] = cache.numbers
        # Before the agents are read, and before anybody can see this worker: no order is lost on the way.
        reloads = Reloads(settings.data_dir, worker=worker)
        agent_room = asyncio.create_task(
            open_agent_room(
                settings, runs, cache, limiter, budgets, conversations, metrics, parts, reloads, room_stack
            ),
            name="agent-room",
        )
        stack.push_async_callback(_end, agent_room)
        # Runs end before the pool closes under them.
        stack.push_async_callback(cache.aclose)
        follower = asyncio.create_task(follow_reloads(settings, agent_room), name="agent-reloads")
        stack.push_async_callback(_end, follower)
        stack.push_async_callback(_end, asyncio.create_task(watch_loop(metrics), name="loop-watch"))
        telling = asyncio.create_task(_end_streams(last_call, streams), name="last-call")
        stack.push_async_callback(_end, telling)
        totals = await _open_totals(settings, metrics, parts, database, store, worker, roll_call)
        stack.push_async_callback(totals.aclose)
        # Once before the first request, so that no worker is ever missing in the numbers of another.
        await totals.report()
        totals.start()
        # With the names of those who died before, which only the first of their successors hears.
        roll_call.start()
        # These are the first to end: what they run needs everything else.
        idempotency = Idempotency(database)
        stack.push_async_callback(idempotency.aclose)
        for chore in (
            Chore("conversation sweep", conversations.sweep, every_s=60.0, claim=store.claim),
            Chore("idempotency clean-up", idempotency.clean_up, every_s=600.0, claim=store.claim),
        ):
            stack.push_async_callback(chore.aclose)
            chore.start()
        yield Runtime(
            settings=settings,
            database=database,
            callers=callers,
            accounts=Accounts(database, passwords, callers),
            key_uses=key_uses,
            idempotency=idempotency,
            runs=runs,
            conversations=conversations,
            metrics=metrics,
            totals=totals,
            parts=parts,
            store=store,
            cache=cache,
            limiter=limiter,
            budgets=budgets,
            agent_room=agent_room,
            started_at=monotonic(),
            draining=draining or asyncio.Event(),
            last_call=last_call,
            responses=Responses(database),
            streams=streams,
        )


async def _open_store(settings: Settings) -> SharedStore:
    if settings.redis_url is None:
        return LocalStore(settings.data_dir / "shared", max_bytes=settings.cache_max_bytes)
    # Off the loop and only here: the driver takes 0.2 s to import, and is an extra.
    module = await asyncio.to_thread(import_module, "app.stores.redis")
    store: RedisStore = module.RedisStore(settings.redis_url)
    await store.start()
    return store


async def _open_totals(
    settings: Settings,
    metrics: Metrics,
    parts: Mapping[str, Callable[[], Mapping[str, Any]]],
    database: Database,
    store: SharedStore,
    worker: str,
    roll_call: RollCall,
) -> Totals:
    def levels() -> dict[str, float]:
        connections = database.pool_status()
        return {
            "requests_in_flight": metrics.in_flight,
            "database_connections": connections.pool_size,
            "database_connections_checked_out": connections.checked_out,
            "database_connections_overflow": connections.overflow,
        }

    folder = settings.data_dir / "numbers"
    scoreboard = await asyncio.to_thread(Scoreboard, folder, founder=metrics.founder, merge=fold, member=worker)
    roll_call.bury(scoreboard.found_dead)
    return Totals(
        metrics,
        scoreboard,
        parts=parts,
        levels=levels,
        data_dir=settings.data_dir,
        store=store,
        on_death=roll_call.bury,
    )


async def _end_streams(last_call: asyncio.Event, streams: OpenStreams) -> None:
    await last_call.wait()
    streams.drain()


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
