"""Everything that is opened, in one place: opened in order, closed in reverse."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING, Any

from app import __version__, tracing
from app.config import Settings
from app.core.accounts import Accounts
from app.core.api_keys import KeyUses
from app.core.budgets import Budgets
from app.core.cache_service import CacheService
from app.core.callers import Callers
from app.core.chore import Chore
from app.core.conversations import Conversations
from app.core.idempotency import Idempotency
from app.core.late_imports import import_types_late
from app.core.login_limits import LoginLimits
from app.core.metrics import Metrics
from app.core.model_providers import fault_of
from app.core.open_streams import OpenStreams
from app.core.picture import fold
from app.core.rate_limiter import RateLimiter
from app.core.reloads import Outcome, Reloads
from app.core.responses import Responses
from app.core.roll_call import RollCall
from app.core.run_log import RunLog
from app.core.security import PasswordHasher, TokenSigner, generate_password, open_data_dir, signing_key
from app.core.totals import Totals
from app.core.vitals import watch_loop
from app.db import schema
from app.db.async_session import Database, open_database
from app.db.users import create_first_admin, has_admin
from app.errors import BadConfiguration, MnemosineError
from app.stores.local import LocalStore
from app.stores.memory import MemoryStore
from app.stores.protocol import SharedStore
from app.stores.scoreboard import Scoreboard

if TYPE_CHECKING:
    from app.core.agent_pool import AgentPool
    from app.core.agents import Agents
    from app.core.prompt_service import PromptService
    from app.stores.redis import RedisStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentRoom:
    """What needs Pydantic AI. It is imported and made by a thread after the socket is open (about 1 s of CPU)."""

    agents: "Agents"
    pool: "AgentPool"
    prompts: "PromptService"
    reloads: Reloads


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
    _signing_key(settings)
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
        tokens = TokenSigner(_signing_key(settings), lifetime_s=settings.access_token_expire_minutes * 60)
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
            _open_agent_room(
                settings, runs, cache, limiter, budgets, conversations, metrics, parts, reloads, room_stack
            ),
            name="agent-room",
        )
        stack.push_async_callback(_end, agent_room)
        # Runs end before the pool closes under them.
        stack.push_async_callback(cache.aclose)
        follower = asyncio.create_task(_follow_reloads(settings, agent_room), name="agent-reloads")
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


async def _open_agent_room(
    settings: Settings,
    runs: RunLog,
    cache: CacheService,
    limiter: RateLimiter,
    budgets: Budgets,
    conversations: Conversations,
    metrics: Metrics,
    parts: dict[str, Callable[[], Mapping[str, Any]]],
    reloads: Reloads,
    stack: AsyncExitStack,
) -> AgentRoom:
    await asyncio.to_thread(import_module, "app.core.agent_stack")
    if tracing.is_on():
        from app.core.agent_spans import trace_agents

        stack.callback(trace_agents())
    from app.core.agent_pool import AgentPool
    from app.core.charges import Charges
    from app.core.models import Models
    from app.core.prompt_service import PromptService

    models = Models()
    stack.push_async_callback(models.aclose)
    # Reading files and importing modules is a thread's work; the one built-in agent is not.
    named = settings.agents_dir is not None or settings.agents
    agents = await asyncio.to_thread(load_agents, settings) if named else load_agents(settings)
    pool = AgentPool(
        models,
        capacity=settings.agent_pool_size,
        idle_s=settings.agent_idle_seconds,
        provider_slots=settings.provider_max_concurrency,
        queue_length=settings.provider_max_concurrency,
        on_creation=metrics.histogram("agent_creation_seconds").record,
        on_wait=metrics.record_slot,
    )
    stack.push_async_callback(pool.aclose)
    pool.start()
    parts["agent_pool"] = pool.numbers
    try:
        for agent in agents:
            await pool.warm(agent)
    except MnemosineError as error:
        _log.error("no prompt can be answered: %s", error.detail)
        raise
    prompts = PromptService(
        agents,
        pool,
        models,
        runs,
        cache,
        Charges(limiter, budgets),
        conversations,
        allowed_models={settings.default_model, "offline"},
        model_timeout_s=settings.model_timeout_seconds,
        on_model_call=metrics.record_model_call,
    )
    return AgentRoom(agents, pool, prompts, reloads)


async def reload_agents(settings: Settings, room: AgentRoom) -> list[str]:
    """Take changed agents without a restart; gives the names of those that are new, changed or gone.

    All or nothing: what a start would refuse raises `BadConfiguration` and leaves the old set. Runs that have begun
    finish on the agent that they began with.
    """
    before = {agent.name: agent.revision for agent in room.agents}
    agents = await asyncio.to_thread(load_agents, settings)
    for agent in agents:
        await room.pool.warm(agent)
    after = {agent.name: agent.revision for agent in agents}
    room.agents.replace(agents)
    room.pool.retire_all_but(agents)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    _log.info("the agents were read again; changed: %s", ", ".join(changed) or "none")
    return changed


async def _follow_reloads(settings: Settings, opening: asyncio.Future[AgentRoom]) -> None:
    """Reload on SIGHUP and when another process orders it; what is broken is logged and changes nothing."""
    hangup = asyncio.Event()
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread, or not POSIX
        loop.add_signal_handler(signal.SIGHUP, hangup.set)
    room = await asyncio.shield(opening)
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await hangup.wait()
        order = room.reloads.hear()
        if not hangup.is_set() and order is None:
            continue
        hangup.clear()
        try:
            changed = await reload_agents(settings, room)
        except MnemosineError as error:
            _log.error("the agents stay as they were: %s", error.detail)
            outcome = Outcome(refusal=error.detail)
        else:
            outcome = Outcome(tuple(sorted(agent.name for agent in room.agents)), tuple(changed))
        if order is not None:
            await asyncio.to_thread(room.reloads.answer, order, outcome)


def load_agents(settings: Settings) -> "Agents":
    """Every agent that `settings` name, each with models that can be made here. Imports the agent stack.

    Raises `BadConfiguration` for a broken one.
    """
    from app.core.agent_code import load_agent
    from app.core.agent_files import read_agent_files
    from app.core.agents import Agents

    model = settings.default_model
    found = [load_agent(reference, default_model=model) for reference in settings.agents]
    if settings.agents_dir is not None:
        allowed = settings.allowed_capabilities
        found += read_agent_files(settings.agents_dir, default_model=model, allowed_capabilities=allowed)
    agents = Agents(found, default_model=model)
    for agent in agents:
        for name in (*(() if agent.own_model is not None else (agent.model,)), *agent.fallbacks):
            _check_model(name, settings, f" of agent {agent.name!r} ({agent.source})")
    return agents


def check_models(settings: Settings) -> None:
    """Look whether every model that is needed can be made here. Raises `BadConfiguration`.

    Without agents nothing slow is imported.
    """
    if settings.agents_dir is not None or settings.agents:
        load_agents(settings)
    else:
        _check_model(settings.default_model, settings)


def _check_model(name: str, settings: Settings, owner: str = "") -> None:
    fault = fault_of(name)
    if fault is not None:
        setting = f"DEFAULT_MODEL={name}" if name == settings.default_model else f"the model {name}{owner}"
        raise BadConfiguration(f"{setting} cannot work: {fault[0]}; {fault[1]}")


def _signing_key(settings: Settings) -> bytes:
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    return signing_key(settings.data_dir)


async def _end_streams(last_call: asyncio.Event, streams: OpenStreams) -> None:
    await last_call.wait()
    streams.drain()


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
