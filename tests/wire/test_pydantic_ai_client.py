"""Pydantic AI as a client of our own `/v1`, by Chat Completions and by the Responses API."""

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.wire.conftest import Wire


class City(BaseModel):
    name: str


@pytest.fixture(params=["openai-chat", "openai"])
async def model(request: pytest.FixtureRequest, wire: Wire) -> AsyncIterator[Model[AsyncOpenAI]]:
    async with AsyncOpenAI(base_url=wire.base_url, api_key=wire.key, max_retries=0) as client:
        provider = OpenAIProvider(openai_client=client)
        kind = OpenAIChatModel if request.param == "openai-chat" else OpenAIResponsesModel
        yield kind("default", provider=provider)


async def test_an_agent_runs_on_our_agent(model: Model[AsyncOpenAI]) -> None:
    agent = Agent(model, instructions="Be brief.")
    first = await agent.run("nonce:one")
    assert "nonce:one" in first.output
    assert first.usage.total_tokens > 0
    second = await agent.run("nonce:two", message_history=first.all_messages())
    assert "nonce:two" in second.output


async def test_it_streams(model: Model[AsyncOpenAI]) -> None:
    nonce = f"nonce:{type(model).__name__}"
    async with Agent(model).run_stream(nonce) as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
        usage = result.usage
    assert len(pieces) > 3
    assert nonce in "".join(pieces)
    assert usage.output_tokens > 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_its_tools_are_called(model: Model[AsyncOpenAI], *, streamed: bool) -> None:
    called: list[str] = []
    agent = Agent(model)

    @agent.tool_plain
    def locate(city: str) -> str:  # pyright: ignore[reportUnusedFunction]
        called.append(city)
        return f"{city} is far away"

    prompt = f'call:locate {{"city": "Lima"}} {streamed} {type(model).__name__}'
    if streamed:
        async with agent.run_stream(prompt) as result:
            output = await result.get_output()
    else:
        output = (await agent.run(prompt)).output
    assert called == ["Lima"]
    assert "Lima is far away" in output


async def test_its_output_schemas_are_filled(model: Model[AsyncOpenAI]) -> None:
    result = await Agent(model, output_type=City).run("nonce:schema")
    assert "nonce:schema" in result.output.name
