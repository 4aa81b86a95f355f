"""The pool: nothing in use is closed, no bound is passed, and what it recommends follows from what happened."""

import asyncio
import random

import pytest
from pydantic_ai import Agent, ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from app.core.agent_options import AgentOptions
from app.core.agent_pool import AgentPool
from app.core.agents import AgentDefinition
from app.core.models import Models
from app.errors import Overloaded, Unavailable


class CountingModel(FunctionModel):
    """Says how often it was entered, and refuses to answer where nobody entered it."""

    def __init__(self, number: int) -> None:
        super().__init__(self._answer)
        self.number = number
        self.entered = 0

    async def __aenter__(self) -> "CountingModel":
        self.entered += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.entered -= 1

    async def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        assert self.entered, "this client is closed"
        await asyncio.sleep(random.uniform(0, 0.002))
        assert self.entered, "this client was closed while in use"
        (request,) = messages
        assert isinstance(request, ModelRequest)
        (part,) = (part for part in request.parts if isinstance(part, UserPromptPart))
        return ModelResponse(parts=[TextPart(f"{self.number}:{part.content}")])


async def test_a_thousand_runs_of_32_agents_in_8_places_close_nothing_in_use_and_mix_nothing() -> None:
    random.seed(seed := random.randrange(10**6))
    print("seed", seed)
    models = [CountingModel(number) for number in range(32)]
    definitions = [
        AgentDefinition(name=f"a{number}", model="function", prototype=Agent(model, name=f"a{number}"), own_model=model)
        for number, model in enumerate(models)
    ]
    pool = AgentPool(Models(), capacity=8)
    beyond: list[int] = []

    async def run(nonce: int) -> None:
        number = random.randrange(32)
        async with pool.lease(definitions[number]) as entry:
            beyond.append(len(pool) - pool.in_use)
            result = await entry.agent.run(f"nonce:{nonce}")
            assert result.output == f"{number}:nonce:{nonce}"

    queue = list(range(1000))

    async def work() -> None:
        while queue:
            await run(queue.pop())

    await asyncio.gather(*(work() for _ in range(24)))
    assert pool.counts.evictions > 100, "the control: agents were evicted meanwhile"
    assert pool.counts.hits + pool.counts.misses == 1000
    assert max(beyond) <= 8
    assert len(pool) <= 8
    assert pool.in_use == 0
    await pool.aclose()
    assert len(pool) == 0
    assert [model.entered for model in models] == [0] * 32


def plain(name: str, **options: object) -> AgentDefinition:
    return AgentDefinition(name=name, model="offline", options=AgentOptions.model_validate(options))


async def use(pool: AgentPool, definition: AgentDefinition) -> None:
    async with pool.lease(definition):
        pass


async def test_the_recommended_size_is_the_one_that_would_have_avoided_the_creations() -> None:
    pool = AgentPool(Models(), capacity=2)
    for _ in range(10):
        for name in "abc":
            await use(pool, plain(name))
    (found,) = pool.recommendations()
    assert (found.code, found.setting, found.current, found.suggested) == ("pool-too-small", "AGENT_POOL_SIZE", 2, 3)
    assert "would have avoided 27" in found.message


async def test_an_idle_agent_is_closed_and_its_early_return_is_told() -> None:
    now = 0.0
    pool = AgentPool(Models(), capacity=8, idle_s=10, clock=lambda: now)
    for _ in range(12):
        await use(pool, plain("a"))
        now += 20
        pool.close_idle()
        assert len(pool) == 0
    assert pool.counts.idle_closings == 12
    (found,) = pool.recommendations()
    assert (found.code, found.setting, found.suggested) == ("idle-too-short", "AGENT_IDLE_SECONDS", 22)


async def test_a_bound_agent_runs_so_often_at_once_and_no_more_even_across_eviction() -> None:
    pool = AgentPool(Models(), capacity=1, queue_length=0, wait_s=1)
    first = plain("a", max_concurrency=2)
    async with pool.lease(first), pool.lease(first):
        await use(pool, plain("b"))
        pool.retire_all_but([])
        with pytest.raises(Overloaded) as refused:
            await use(pool, first)
        assert refused.value.retry_after_s == 1
    await use(pool, first)
    assert pool.recommendations()[0].code == "slots-saturated"


async def test_a_waiter_gets_the_slot_in_order_and_a_cancelled_one_leaves_no_trace() -> None:
    pool = AgentPool(Models(), capacity=1)
    agent = plain("a", max_concurrency=1)
    async with pool.lease(agent):
        first, second = (asyncio.create_task(use(pool, agent)) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
    await second
    assert [slots.in_use for slots in pool.slots()] == [0, 0]


async def test_a_retired_agent_ends_with_its_last_lease() -> None:
    pool = AgentPool(Models(), capacity=4)
    async with pool.lease(plain("a")) as old:
        pool.retire_all_but([])
        assert len(pool) == 1
        async with pool.lease(plain("a")) as new:
            assert new is not old
    assert [entry is new for entry in pool.entries] == [True]


class UnreachableModel(CountingModel):
    """Cannot be entered the first time, as a tool server that is away."""

    entered = 0

    async def __aenter__(self) -> "CountingModel":
        UnreachableModel.entered += 1
        if UnreachableModel.entered == 1:
            raise ConnectionError("nobody listens")
        return await super().__aenter__()


async def test_what_cannot_be_opened_is_a_503_and_the_next_one_tries_again() -> None:
    UnreachableModel.entered = 0
    model = UnreachableModel(1)
    definition = AgentDefinition(name="tools", model=model.model_id, prototype=Agent(model), own_model=model)
    pool = AgentPool(Models(), capacity=2)
    with pytest.raises(Unavailable, match="tool server of the agent tools"):
        async with pool.lease(definition):
            raise AssertionError("it was never open")
    async with pool.lease(definition) as entry:
        assert entry.agent.model is model
    assert UnreachableModel.entered == 2
    await pool.aclose()
