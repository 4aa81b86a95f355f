"""Agents that are alive, kept between prompts so that a prompt pays nothing for its agent."""

import asyncio
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic, perf_counter
from typing import Any, Literal

from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel

from app.core.agents import AgentDefinition, AnyAgent
from app.core.direct_run import DirectAgent, Tier, tier_of
from app.core.models import Models, provider_identity, provider_of
from app.core.slots import OnWait, Samples, Slots
from app.core.tool_servers import ToolServers
from app.errors import Unavailable

_log = logging.getLogger(__name__)

Key = tuple[str, str, str, str]
"""Name, revision, model, and where and as whom it is reached: everything that makes two live agents different."""

_REMEMBERED = 4096
_ENOUGH = 10
"""Fewer returns than this prove nothing; no recommendation is drawn from them."""


@dataclass(slots=True, eq=False)
class PooledAgent:
    """One live agent on one model, and how it is used."""

    key: Key
    agent: AnyAgent
    model: Model[Any]
    definition: AgentDefinition
    model_name: str
    created_at: float
    last_used_at: float
    born: datetime
    uses: int = 0
    leases: int = 0
    retired: bool = False
    """No new lease; it is closed when the last one ends."""
    opened: asyncio.Future[None] | None = None
    """Where something has to be entered (MCP, a client of its own): done when its owner has entered it."""
    tool_servers: ToolServers | None = None
    """Those that its owner has entered."""
    lost: bool = False
    """A tool server went away: no new lease, and whoever comes waits until the last one has ended."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    owner: asyncio.Task[None] | None = None
    direct: DirectAgent | None = None
    """Asks without the agent graph, where that equals it; `tier_of_definition` says why or why not."""


@dataclass(slots=True)
class PoolCounts:
    """What happened so far; every field only grows."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    idle_closings: int = 0


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What the recorded traffic says about one setting."""

    code: str
    severity: Literal["info", "warning", "critical"]
    message: str
    setting: str
    current: float
    suggested: float


def tier_of_definition(definition: AgentDefinition) -> Tier:
    """How runs of this agent are executed, and why."""
    assert definition.prototype is not None
    if definition.fallbacks or isinstance(definition.own_model, FallbackModel):
        return Tier("graph", "it has fallback models", asks_directly=False)
    return tier_of(definition.prototype)


class AgentPool:
    """At most `capacity` agents beyond need; the least recently used leaves first, and never one that is in use.

    One Agent serves many runs at once (50 concurrent runs were measured correct), so a lease is a count, not a
    claim: whoever leases an agent that is busy shares it. Slots bound the runs of an agent that asks for it and of
    each provider; they live here and not in the entries, so that an eviction never doubles them.
    """

    def __init__(
        self,
        models: Models,
        *,
        capacity: int,
        idle_s: float = 600.0,
        provider_slots: int = 1000,
        queue_length: int = 1000,
        wait_s: float = 10.0,
        clock: Callable[[], float] = monotonic,
        on_creation: Callable[[float], object] | None = None,
        on_wait: OnWait | None = None,
    ) -> None:
        self.capacity = capacity
        self.counts = PoolCounts()
        self.creation = Samples()
        self._models = models
        self._idle_s = idle_s
        self._provider_slots = provider_slots
        self._queue = {"queue_length": queue_length, "wait_s": wait_s}
        self._clock = clock
        self._on_creation = on_creation
        self._on_wait = on_wait
        self._entries: OrderedDict[Key, PooledAgent] = OrderedDict()
        self._leaving: set[PooledAgent] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._identities: dict[int, tuple[Model[Any], str]] = {}
        self._slots: dict[str, Slots] = {}
        self._known_models: set[str] = set()
        self._chains: dict[tuple[str, ...], FallbackModel] = {}
        self._making = asyncio.Lock()
        self._cleaner: asyncio.Task[None] | None = None
        self._closed = False
        self._idle = asyncio.Event()
        self._recency: OrderedDict[Key, None] = OrderedDict()
        self._gone: OrderedDict[Key, tuple[Literal["capacity", "idle"], float]] = OrderedDict()
        self._distances: Counter[int] = Counter()
        self._absences: list[float] = []

    def __len__(self) -> int:
        return len(self._entries) + len(self._leaving)

    @property
    def in_use(self) -> int:
        """How many entries are leased right now."""
        return sum(1 for entry in (*self._entries.values(), *self._leaving) if entry.leases)

    @property
    def entries(self) -> list[PooledAgent]:
        """Every entry that is alive, the least recently used first."""
        return [*self._entries.values(), *self._leaving]

    def start(self) -> None:
        """Begin closing idle agents; `aclose()` ends it."""
        self._cleaner = asyncio.create_task(self._clean_for_ever(), name="agent-pool")

    @asynccontextmanager
    async def lease(self, definition: AgentDefinition, *, model_name: str | None = None) -> AsyncGenerator[PooledAgent]:
        """A live agent and a slot for one run, for the length of the block.

        Raises `BadConfiguration` where its model cannot be made, `Overloaded` where too many runs wait for a slot,
        `Unavailable` where a tool server of it is away.
        """
        name = model_name or definition.model
        model = await self._model(definition, name)
        slots = self._slots_for(definition, model)
        taken = 0
        try:
            for one in slots:
                await one.take()
                taken += 1
            entry = self._take(definition, model, name)
            if entry.opened is None:
                entry.leases += 1
            else:
                entry = await self._open(entry, lambda: self._take(definition, model, name))
            try:
                yield entry
            finally:
                self._give_back(entry)
        finally:
            for one in slots[:taken]:
                one.give_back()

    async def warm(self, definition: AgentDefinition) -> None:
        """Make the models of an agent now, off the event loop, so that its first prompt does not wait for them.

        Raises `BadConfiguration` where one cannot be made.
        """
        await self._model(definition, definition.model)

    def retire_all_but(self, definitions: Iterable[AgentDefinition]) -> None:
        """Let go of every agent that is not one of these any more; runs that have one finish on it."""
        current = {(definition.name, definition.revision) for definition in definitions}
        for key in [key for key in self._entries if key[:2] not in current]:
            self._let_go(key)
        self._settle()

    def close_idle(self) -> None:
        """Close what nobody has used for `idle_s` seconds."""
        limit = self._clock() - self._idle_s
        for key in [key for key, entry in self._entries.items() if not entry.leases and entry.last_used_at <= limit]:
            self._remember(key, "idle")
            self.counts.idle_closings += 1
            self._let_go(key)
        self._settle()

    async def aclose(self, *, drain_s: float = 5.0) -> None:
        """Take no new lease, wait up to `drain_s` for the running ones, and close every agent."""
        self._closed = True
        if self._cleaner is not None:
            self._cleaner.cancel()
            await asyncio.gather(self._cleaner, return_exceptions=True)
        if self.in_use:
            self._idle.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(drain_s):
                    await self._idle.wait()
        for key in list(self._entries):
            self._let_go(key)
        for entry in self._leaving:
            entry.closing.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=drain_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._leaving.clear()
        self._identities.clear()

    def tier_of(self, definition: AgentDefinition) -> Tier:
        """How runs of this agent are executed, and why."""
        return tier_of_definition(definition)

    def numbers(self) -> dict[str, Any]:
        """The pool in the words of the performance API, its live agents and recommendations included."""
        now, today = self._clock(), datetime.now(UTC)
        agents: list[dict[str, Any]] = []
        for entry in self.entries:
            idle_s = max(0.0, now - entry.last_used_at)
            agents.append(
                {
                    "agent": entry.definition.name,
                    "model": entry.model_name,
                    "uses": entry.uses,
                    "in_use": entry.leases,
                    "created_at": entry.born.isoformat(),
                    "last_used_at": (today - timedelta(seconds=idle_s)).isoformat(),
                    "idle_seconds": 0.0 if entry.leases else round(idle_s, 3),
                }
            )
        counts = self.counts
        return {
            "capacity": self.capacity,
            "size": len(self),
            "in_use": self.in_use,
            "hits": counts.hits,
            "misses": counts.misses,
            "evictions": counts.evictions,
            "idle_closings": counts.idle_closings,
            "hit_ratio": round(counts.hits / max(1, counts.hits + counts.misses), 4),
            "creation_ms": self.creation.milliseconds(),
            "slots": [
                {
                    "name": one.name,
                    "limit": one.limit,
                    "in_use": one.in_use,
                    "refused": one.refused,
                    "wait_ms": one.waited.milliseconds(),
                }
                for one in self.slots()
            ],
            "agents": agents,
            "recommendations": [asdict(one) for one in self.recommendations()],
        }

    def slots(self) -> list[Slots]:
        """Every bound that was needed so far."""
        return list(self._slots.values())

    def recommendations(self) -> list[Recommendation]:
        """What the recorded traffic says about the settings; empty while it says nothing."""
        found: list[Recommendation] = []
        returns = self._distances.total()
        if returns >= _ENOUGH:
            size, saved = self.capacity, 0
            for distance in sorted(self._distances):
                size, saved = distance, saved + self._distances[distance]
                if saved >= 0.9 * returns:
                    break
            share = returns / max(1, self.counts.misses)
            message = (
                f"{returns} of {self.counts.misses} agents were made again after they had been evicted; "
                f"a pool of {size} would have avoided {saved} of these"
            )
            severity = "warning" if share > 0.2 else "info"
            found.append(Recommendation("pool-too-small", severity, message, "AGENT_POOL_SIZE", self.capacity, size))
        if len(self._absences) >= _ENOUGH:
            absences = sorted(self._absences)
            needed = math.ceil(absences[int(0.9 * (len(absences) - 1))] * 1.1)
            message = f"{len(absences)} agents came back after they had been closed as idle, 90 % within {needed} s"
            found.append(
                Recommendation(
                    "idle-too-short", "info", message, "AGENT_IDLE_SECONDS", self._idle_s, min(86_400, needed)
                )
            )
        for one in self._slots.values():
            if one.refused or one.waited.count >= 100:
                message = f"{one.name}: {one.waited.count} runs waited for a slot and {one.refused} were refused"
                severity = "critical" if one.refused else "warning"
                found.append(
                    Recommendation("slots-saturated", severity, message, one.setting, one.limit, one.limit * 2)
                )
        return found

    async def _model(self, definition: AgentDefinition, name: str) -> Model[Any]:
        if definition.own_model is not None and name == definition.model:
            return definition.own_model
        # The operator's chain stands behind the agent's own model; who names another model gets that one.
        names = (name, *definition.fallbacks) if name == definition.model else (name,)
        for one in names:
            if one not in self._known_models:
                # The first use of a provider imports hundreds of modules; in a thread, it stalls nobody.
                async with self._making:
                    await asyncio.to_thread(self._models.get, one)
                self._known_models.add(one)
        if len(names) == 1:
            return self._models.get(name)
        chain = self._chains.get(names)
        if chain is None:
            # An open circuit is our own error, and as good a reason to ask the next model as the provider's.
            models = [self._models.get(one) for one in names]
            chain = self._chains[names] = FallbackModel(*models, fallback_on=(ModelAPIError, Unavailable))
        return chain

    def _take(self, definition: AgentDefinition, model: Model[Any], name: str) -> PooledAgent:
        if self._closed:
            raise Unavailable("the server is stopping")
        key = (definition.name, definition.revision, name, self._identity(model))
        entry = self._entries.get(key)
        now = self._clock()
        if entry is None:
            self.counts.misses += 1
            self._note_return(key, now)
            began = perf_counter()
            agent = definition.build(model)
            entry = PooledAgent(key, agent, model, definition, name, now, now, datetime.now(UTC))
            if tier_of_definition(definition).asks_directly and not isinstance(model, FallbackModel):
                entry.direct = DirectAgent(agent, model)
            self._entries[key] = entry
            if definition.open_tools or definition.own_model is not None:
                entry.opened = asyncio.get_running_loop().create_future()
                entry.owner = asyncio.create_task(self._own(entry, began), name=f"agent-{definition.name}")
                self._tasks.add(entry.owner)
                entry.owner.add_done_callback(self._tasks.discard)
            else:
                self._created(perf_counter() - began)
        else:
            self.counts.hits += 1
            self._entries.move_to_end(key)
        self._recency[key] = None
        self._recency.move_to_end(key)
        if len(self._recency) > _REMEMBERED:
            self._recency.popitem(last=False)
        entry.uses += 1
        entry.last_used_at = now
        return entry

    def _created(self, seconds: float) -> None:
        self.creation.add(seconds)
        if self._on_creation is not None:
            self._on_creation(seconds)

    async def _open(self, entry: PooledAgent, take: Callable[[], PooledAgent]) -> PooledAgent:
        """`entry`, or what `take` gives after it was lost: leased, entered, and its tool servers are there."""
        give_up_at = self._clock() + self._queue["wait_s"]
        while True:
            if not entry.lost:
                entry.leases += 1
                try:
                    is_usable = await self._is_usable(entry)
                except BaseException:
                    self._give_back(entry)
                    raise
                if is_usable:
                    return entry
                self._give_back(entry)
            assert entry.owner is not None
            await asyncio.wait([entry.owner], timeout=max(0.0, give_up_at - self._clock()))
            if not entry.owner.done():
                away = f"a tool server of the agent {entry.definition.name} went away, and runs still hold on to it"
                raise Unavailable(away, retry_after_s=5)
            entry = take()

    async def _is_usable(self, entry: PooledAgent) -> bool:
        assert entry.opened is not None
        await asyncio.shield(entry.opened)
        if entry.tool_servers is not None and not await entry.tool_servers.are_there():
            self._lose(entry)
        return not entry.lost

    def _lose(self, lost: PooledAgent) -> None:
        if not lost.lost:
            _log.warning("a tool server of the agent %s went away; it is called anew", lost.definition.name)
        # One agent object can be open on several models; its sessions end when the last of them is left.
        for entry in (lost, *self._entries.values()):
            if entry.agent is lost.agent:
                entry.lost = True
                if not entry.leases:
                    entry.closing.set()

    def _give_back(self, entry: PooledAgent) -> None:
        entry.leases -= 1
        entry.last_used_at = self._clock()
        if entry.lost and not entry.leases:
            entry.closing.set()
        self._settle()

    async def _own(self, entry: PooledAgent, began: float) -> None:
        # MCP sessions want to be left in the task that entered them.
        assert entry.opened is not None
        try:
            async with entry.agent:
                entry.tool_servers = ToolServers(entry.agent.toolsets, clock=self._clock)
                self._created(perf_counter() - began)
                entry.opened.set_result(None)
                await entry.closing.wait()
        except Exception as error:
            if entry.opened.done():
                _log.warning("the agent %s did not close well: %s", entry.definition.name, type(error).__name__)
            else:
                away = Unavailable(
                    f"a tool server of the agent {entry.definition.name} does not answer", retry_after_s=5
                )
                away.__cause__ = error
                entry.opened.set_exception(away)
                entry.opened.exception()  # seen, also where nobody waits any more
        except BaseException:
            entry.opened.cancel()
            raise
        finally:
            # Whoever comes next gets a new one: nobody holds this one open any more.
            if self._entries.get(entry.key) is entry:
                del self._entries[entry.key]

    def _settle(self) -> None:
        if self._closed and not self.in_use:
            self._idle.set()
        surplus = len(self._entries) - self.capacity
        if surplus > 0:
            for key in [key for key, entry in self._entries.items() if not entry.leases][:surplus]:
                self._remember(key, "capacity")
                self.counts.evictions += 1
                self._let_go(key)
        for entry in [entry for entry in self._leaving if not entry.leases]:
            entry.closing.set()
            self._leaving.discard(entry)

    def _let_go(self, key: Key) -> None:
        entry = self._entries.pop(key)
        entry.retired = True
        if entry.leases:
            self._leaving.add(entry)
        else:
            entry.closing.set()

    def _remember(self, key: Key, reason: Literal["capacity", "idle"]) -> None:
        self._gone[key] = (reason, self._entries[key].last_used_at)
        self._gone.move_to_end(key)
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    def _note_return(self, key: Key, now: float) -> None:
        gone = self._gone.pop(key, None)
        if gone is None or key not in self._recency:
            return
        reason, last_used_at = gone
        if reason == "idle":
            self._absences = [*self._absences[-999:], now - last_used_at]
            return
        # How many other agents were used since: a pool of one more would still have had it (Mattson's distance).
        distance = 1
        for other in reversed(self._recency):
            if other == key:
                break
            distance += 1
        self._distances[distance] += 1

    def _slots_for(self, definition: AgentDefinition, model: Model[Any]) -> list[Slots]:
        found: list[Slots] = []
        if (limit := definition.options.max_concurrency) is not None:
            setting = f"metadata.mnemosine.max_concurrency of {definition.name}"
            found.append(self._bound(f"the agent {definition.name}", limit, setting))
        name = f"the model provider {provider_of(model)}"
        found.append(self._bound(name, self._provider_slots, "PROVIDER_MAX_CONCURRENCY"))
        return found

    def _bound(self, name: str, limit: int, setting: str) -> Slots:
        slots = self._slots.get(name)
        if slots is None:
            queue_length, wait_s = int(self._queue["queue_length"]), self._queue["wait_s"]
            slots = self._slots[name] = Slots(
                name, limit, queue_length=queue_length, wait_s=wait_s, setting=setting, on_wait=self._on_wait
            )
        slots.limit = limit
        return slots

    def _identity(self, model: Model[Any]) -> str:
        known = self._identities.get(id(model))
        if known is None:
            known = self._identities[id(model)] = (model, provider_identity(model))
        return known[1]

    async def _clean_for_ever(self) -> None:
        while True:
            await asyncio.sleep(min(30.0, max(0.05, self._idle_s / 4)))
            self.close_idle()
