"""The agents of one worker: read as the settings name them, made, kept ready, and read again."""

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from app import tracing
from app.config import Settings
from app.core.budgets import Budgets
from app.core.cache_service import CacheService
from app.core.conversations import Conversations
from app.core.metrics import Metrics
from app.core.model_providers import fault_of
from app.core.rate_limiter import RateLimiter
from app.core.reloads import Outcome, Reloads
from app.core.run_log import RunLog
from app.errors import BadConfiguration, MnemosineError

if TYPE_CHECKING:
    from app.core.agent_pool import AgentPool
    from app.core.agents import Agents
    from app.core.prompt_service import PromptService

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentRoom:
    """What needs Pydantic AI. It is imported and made by a thread after the socket is open (about 1 s of CPU)."""

    agents: "Agents"
    pool: "AgentPool"
    prompts: "PromptService"
    reloads: Reloads


async def open_agent_room(
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
    """Import what answers prompts, and make the agents that `settings` name ready. `stack` closes it.

    What prevents it is raised, and logged: nobody may be there to hear it.
    """
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


async def follow_reloads(settings: Settings, opening: asyncio.Future[AgentRoom]) -> None:
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
