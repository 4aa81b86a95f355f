"""The pool under a race: 8 places, 32 agents, 1,000 runs of every kind, evictions all the while."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelResponse, ModelSettings, RunContext, Tool
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel

from app.core.agent_pool import AgentPool
from app.core.agent_run import run_agent
from app.core.agents import AgentDefinition
from app.core.models import Models, provider_error
from app.core.run import Question, RunEvent, TextDelta, ToolFinished, new_run_id
from benchmarks.fake_provider import FakeProvider

AGENTS, RUNS, PLACES, CLIENTS = 32, 1000, 8, 24


class Watched(WrapperModel):
    """A client of its own: refuses to be used where the pool has not opened it, or has closed it meanwhile."""

    def __init__(self, wrapped: Model[Any]) -> None:
        super().__init__(wrapped)
        self.opened = 0

    async def __aenter__(self) -> "Watched":
        self.opened += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self.opened -= 1

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        assert self.opened, "this client is closed"
        answer = await super().request(messages, model_settings, model_request_parameters)
        assert self.opened, "this client was closed while in use"
        return answer

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        assert self.opened, "this client is closed"
        async with super().request_stream(messages, model_settings, model_request_parameters, run_context) as stream:
            yield stream
        assert self.opened, "this client was closed while in use"


class Ticket(BaseModel):
    subject: str


def place(where: str) -> str:
    """Where it is."""
    return f"place {where}"


def owner(context: RunContext[str]) -> str:
    """Whose run it is."""
    return f"deps {context.deps}"


def definition(number: int, model: Watched) -> AgentDefinition:
    """A talker, one with tools, one with a shape, or one whose own tools look at its dependencies."""
    agent: Any
    match number % 4:
        case 0:
            agent = Agent(model, instructions="Be short.")
        case 1:
            agent = Agent(model, tools=[place])
        case 2:
            agent = Agent(model, output_type=Ticket)
        case _:
            agent = Agent(model, deps_type=str, tools=[Tool(owner), Tool(place)])
    return AgentDefinition(name=f"a{number}", model="watched", prototype=agent, own_model=model)


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with FakeProvider(record=False, latency_s=0.001) as provider:
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        yield provider


async def test_a_thousand_runs_of_every_kind_close_nothing_in_use_and_mix_nothing(fake: FakeProvider) -> None:
    random.seed(seed := random.randrange(10**6))
    print("seed", seed)
    done: Counter[str] = Counter()
    beyond: list[int] = []
    async with Models() as models:
        clients = [Watched(models.get("openai-chat:gpt-4o-mini")) for _ in range(AGENTS)]
        agents = [definition(number, client) for number, client in enumerate(clients)]
        pool = AgentPool(models, capacity=PLACES)

        async def ask(number: int, nonce: str, *, fails: bool, streams: bool) -> None:
            calls = number % 4 in (1, 3)
            prompt = f"nonce:{nonce}"
            if fails:
                prompt += " fault:401"
            elif calls:
                prompt = f'{prompt} call:place {{"where": "{nonce}"}}' + (" call:owner" if number % 4 == 3 else "")
            told: list[RunEvent] = []
            async with pool.lease(agents[number]) as entry:
                beyond.append(len(pool) - pool.in_use)
                try:
                    outcome = await run_agent(
                        entry,
                        Question(prompt),
                        nonce,
                        run_id=new_run_id(),
                        tell=told.append if streams else None,
                    )
                except AgentRunError as error:
                    # Anything else (a closed client, a foreign state) fails the test.
                    if not fails or provider_error(error, provider="openai") is None:
                        raise
                    done["failed"] += 1
                    return
            assert not fails
            said = str(outcome.output)
            assert f"nonce:{nonce} " in said
            assert not calls or f"place {nonce}" in said
            assert number % 4 != 3 or f"deps {nonce}" in said
            if streams:
                texts = "".join(event.text for event in told if isinstance(event, TextDelta))
                assert number % 4 == 2 or texts == said
                assert calls == any(isinstance(event, ToolFinished) for event in told)
            done["streamed" if streams else "answered"] += 1

        queue = list(range(RUNS))

        async def work() -> None:
            while queue:
                nonce = f"n{queue.pop()}x"
                kind = random.choices(("plain", "stream", "fails", "leaves"), (4, 3, 1, 2))[0]
                run = ask(random.randrange(AGENTS), nonce, fails=kind == "fails", streams=kind == "stream")
                if kind != "leaves":
                    await run
                    continue
                task = asyncio.create_task(run)
                await asyncio.sleep(random.uniform(0, 0.006))
                task.cancel()
                (left,) = await asyncio.gather(task, return_exceptions=True)
                assert left is None or isinstance(left, asyncio.CancelledError), repr(left)
                done["left"] += isinstance(left, asyncio.CancelledError)

        await asyncio.gather(*(work() for _ in range(CLIENTS)))

        # The controls: every kind happened, and agents were evicted meanwhile.
        assert min(done[kind] for kind in ("answered", "streamed", "failed", "left")) > 20, done
        assert pool.counts.evictions > 100
        assert max(beyond) <= PLACES
        assert len(pool) <= PLACES
        assert pool.in_use == 0
        assert [slots.in_use for slots in pool.slots()] == [0] * len(pool.slots())
        await pool.aclose()
        assert len(pool) == 0
        assert [client.opened for client in clients] == [0] * AGENTS
    await fake.until(lambda: fake.connections == 0)
    assert fake.in_flight == 0


async def test_a_client_that_is_closed_while_in_use_is_noticed(fake: FakeProvider) -> None:
    """The positive control of the test above."""
    async with Models() as models:
        client = Watched(models.get("openai-chat:gpt-4o-mini"))
        pool = AgentPool(models, capacity=1)
        async with pool.lease(definition(0, client)) as entry:
            entry.closing.set()
            assert entry.owner is not None
            await entry.owner
            with pytest.raises(AssertionError, match="closed"):
                await entry.model.request([], None, ModelRequestParameters())
        await pool.aclose()
