"""Agents that are alive, kept between prompts so that a prompt pays nothing for its agent."""

from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pydantic_ai.models import Model

from app.core.agents import AgentDefinition, AnyAgent
from app.core.models import Models

Key = tuple[str, str, str]
"""Name, revision and model: everything that makes two live agents different."""


@dataclass(slots=True, eq=False)
class PooledAgent:
    """One live agent on one model, and how it is used."""

    agent: AnyAgent
    model: Model[Any]
    definition: AgentDefinition
    model_name: str
    created_at: float
    last_used_at: float
    uses: int = 0
    leases: int = 0


@dataclass(slots=True)
class PoolCounts:
    """What happened so far; every field only grows."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class AgentPool:
    """At most `capacity` idle agents; the least recently used leaves first, and never one that is in use.

    One Agent serves many runs at once (50 concurrent runs were measured correct), so a lease is a count, not a
    claim: whoever leases an agent that is busy shares it.
    """

    def __init__(self, models: Models, *, capacity: int) -> None:
        self.capacity = capacity
        self.counts = PoolCounts()
        self._models = models
        self._entries: OrderedDict[Key, PooledAgent] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def in_use(self) -> int:
        """How many entries are leased right now."""
        return sum(1 for entry in self._entries.values() if entry.leases)

    @contextmanager
    def lease(self, definition: AgentDefinition, *, model_name: str | None = None) -> Generator[PooledAgent]:
        """A live agent for the length of the block. Raises `BadConfiguration` where its model cannot be made."""
        entry = self._take(definition, model_name or definition.model)
        entry.leases += 1
        try:
            yield entry
        finally:
            entry.leases -= 1
            self._shrink()

    def clear(self) -> None:
        """Forget every agent. Their HTTP client belongs to `Models`, which closes it."""
        self._entries.clear()

    def _take(self, definition: AgentDefinition, model_name: str) -> PooledAgent:
        key = (definition.name, definition.revision, model_name)
        entry = self._entries.get(key)
        now = monotonic()
        if entry is None:
            self.counts.misses += 1
            model = self._models.get(model_name)
            entry = PooledAgent(
                agent=definition.build(model),
                model=model,
                definition=definition,
                model_name=model_name,
                created_at=now,
                last_used_at=now,
            )
            self._entries[key] = entry
        else:
            self.counts.hits += 1
            self._entries.move_to_end(key)
        entry.uses += 1
        entry.last_used_at = now
        return entry

    def _shrink(self) -> None:
        surplus = len(self._entries) - self.capacity
        if surplus <= 0:
            return
        for key in [key for key, entry in self._entries.items() if not entry.leases][:surplus]:
            del self._entries[key]
            self.counts.evictions += 1
