"""The pool against a plain model of it: leased, given back, evicted, left idle, reloaded and shut in any order."""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic_ai import Agent, ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo, FunctionModel

from app.core.agent_pool import AgentPool, PooledAgent
from app.core.agents import AgentDefinition
from app.core.models import Models
from app.errors import Unavailable

NAMES = "abcde"
CAPACITY, IDLE_S = 3, 10.0


class Client(FunctionModel):
    """Counts how often it is open."""

    def __init__(self) -> None:
        super().__init__(_never)
        self.opened = 0

    async def __aenter__(self) -> "Client":
        self.opened += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.opened -= 1


def _never(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    raise AssertionError("nobody asks")


@dataclass
class Expected:
    """What the plain model knows of one live agent."""

    name: str
    version: int
    used_at: float
    leases: int = 0
    retired: bool = False


@dataclass
class Lease:
    manager: AbstractAsyncContextManager[PooledAgent]
    entry: PooledAgent
    expected: Expected


class PoolAndModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = 0.0
        self.clients = {name: Client() for name in NAMES}
        self.versions = dict.fromkeys(NAMES, 0)
        self.definitions = {name: self.define(name) for name in NAMES}
        self.pool = AgentPool(Models(), capacity=CAPACITY, idle_s=IDLE_S, clock=lambda: self.now)
        self.alive: list[Expected] = []
        """The least recently used first."""
        self.leases: list[Lease] = []
        self.hits = self.misses = self.evictions = self.idle_closings = 0
        self.closed = False

    def define(self, name: str) -> AgentDefinition:
        client = self.clients[name]
        return AgentDefinition(
            name=name,
            model="client",
            prototype=Agent(client, name=name),
            own_model=client,
            fingerprint=self.versions[name],
        )

    def settle(self) -> None:
        """The model's eviction, then time for the owners of what is closed."""
        current = [one for one in self.alive if not one.retired]
        free = [one for one in current if not one.leases]
        for one in free[: max(0, len(current) - CAPACITY)]:
            self.alive.remove(one)
            self.evictions += 1
        self.alive = [one for one in self.alive if one.leases or not one.retired]
        self.runner.run(_turns())

    def retire(self, one: Expected) -> None:
        one.retired = True
        if not one.leases:
            self.alive.remove(one)

    @rule(name=st.sampled_from(NAMES))
    def lease(self, name: str) -> None:
        manager = self.pool.lease(self.definitions[name])
        if self.closed:
            with pytest.raises(Unavailable):
                self.runner.run(manager.__aenter__())
            return
        entry = self.runner.run(manager.__aenter__())
        version = self.versions[name]
        found = [one for one in self.alive if (one.name, one.version, one.retired) == (name, version, False)]
        if found:
            self.hits += 1
            self.alive.remove(found[0])
        else:
            self.misses += 1
        one = found[0] if found else Expected(name, version, self.now)
        self.alive.append(one)
        one.leases += 1
        one.used_at = self.now
        for other in self.leases:
            assert (other.entry is entry) == (other.expected is one)
        self.leases.append(Lease(manager, entry, one))

    @precondition(lambda self: self.leases)
    @rule(which=st.integers(0, 10**6), fails=st.booleans())
    def give_back(self, which: int, fails: bool) -> None:
        lease = self.leases.pop(which % len(self.leases))
        assert not lease.entry.closing.is_set(), "closed while in use"
        error = RuntimeError("the run failed") if fails else None
        try:
            self.runner.run(_leave(lease.manager, error))
        except RuntimeError:
            assert fails
        lease.expected.leases -= 1
        lease.expected.used_at = self.now
        self.settle()

    @precondition(lambda self: not self.closed)
    @rule(seconds=st.sampled_from([1.0, 6.0, 11.0]))
    def time_passes_and_the_idle_are_closed(self, seconds: float) -> None:
        self.now += seconds
        self.pool.close_idle()
        for one in list(self.alive):
            if not one.retired and not one.leases and one.used_at <= self.now - IDLE_S:
                self.alive.remove(one)
                self.idle_closings += 1
        self.settle()

    @precondition(lambda self: not self.closed)
    @rule(names=st.sets(st.sampled_from(NAMES), max_size=3))
    def reload(self, names: set[str]) -> None:
        for name in sorted(names):
            self.versions[name] += 1
            self.definitions[name] = self.define(name)
        self.pool.retire_all_but(self.definitions.values())
        for one in list(self.alive):
            if not one.retired and one.version != self.versions[one.name]:
                self.retire(one)
        self.settle()

    @precondition(lambda self: not self.closed and not self.leases)
    @rule()
    def shut(self) -> None:
        self.runner.run(self.pool.aclose())
        self.closed = True
        self.alive.clear()

    @invariant()
    def the_pool_is_what_the_model_says(self) -> None:
        def told(one: PooledAgent) -> tuple[str, int, bool]:
            return one.definition.name, one.leases, one.retired

        expected = [(one.name, one.leases, one.retired) for one in self.alive]
        current = [told(entry) for entry in self.pool.entries if not entry.retired]
        assert current == [one for one in expected if not one[2]], "the same agents in the same order of use"
        assert sorted(map(told, self.pool.entries)) == sorted(expected)
        assert self.pool.in_use == sum(1 for one in self.alive if one.leases)
        assert len(self.pool) - self.pool.in_use <= CAPACITY
        counts = self.pool.counts
        assert (counts.hits, counts.misses) == (self.hits, self.misses)
        assert (counts.evictions, counts.idle_closings) == (self.evictions, self.idle_closings)
        for name, client in self.clients.items():
            assert client.opened == sum(1 for one in self.alive if one.name == name), name

    def teardown(self) -> None:
        for lease in self.leases:
            self.runner.run(_leave(lease.manager, None))
        self.runner.run(self.pool.aclose())
        assert len(self.pool) == 0
        assert not any(client.opened for client in self.clients.values())
        self.runner.close()


async def _turns() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def _leave(manager: AbstractAsyncContextManager[PooledAgent], error: Exception | None) -> None:
    if error is None:
        await manager.__aexit__(None, None, None)
    else:
        await manager.__aexit__(type(error), error, error.__traceback__)


TestThePool = PoolAndModel.TestCase
TestThePool.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
