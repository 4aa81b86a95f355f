"""Agents with tools whose first request needs no graph: the same requests, messages, usage, events and errors."""

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai import Agent, FunctionToolset, ModelRetry, ModelSettings, RunContext, Tool, ToolDefinition
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.messages import FunctionToolCallEvent, FunctionToolResultEvent
from pydantic_ai.models import Model
from pydantic_ai.run import AgentRunResultEvent

from app.core.direct_run import DirectAgent, tier_of
from app.core.text_stream import text_of
from benchmarks.fake_provider import Fault
from tests.core.test_direct_run import World, told

CALLS = [
    'call:rain {"city": "Ülm"}',
    'call:rain {"city": 3}',
    "call:rain",
    "call:who",
    'call:double {"number": 4}',
    "call:moody",
    "call:nobody",
]
PROMPTS = st.lists(st.sampled_from([*CALLS, "nonce:n1", "hello", "\x00é"]), min_size=1, max_size=3).map(" ".join)
FAULTS: list[list[Fault | None]] = [[], [], [], ["500"], ["401"], [None, "500"], [None, "bad-json"], ["empty"]]
STREAM_FAULTS: list[list[Fault | None]] = [[], [], ["500"], ["stream-cut"], [None, "stream-no-finish"]]


def rain(city: str) -> str:
    """Whether it rains in a city."""
    return f"rain in {city}"


def who(context: RunContext[str]) -> str:
    """Who asks."""
    return f"{context.deps}, step {context.run_step}, {len(context.messages)} messages"


async def double(number: int) -> int:
    """Twice a number."""
    return number * 2


def moody(context: RunContext[str]) -> str:
    """Works the second time."""
    if context.retry == 0:
        raise ModelRetry("not now")
    return "well then"


def agent_on(model: Model[Any]) -> Agent[str, str]:
    tools = [Tool(rain), Tool(who), Tool(double, metadata={"effect": "pure"}), Tool(moody)]
    return Agent(model, deps_type=str, instructions="Be short.", tools=tools)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def outcome(result: Any) -> Any:
    # Calls of one turn run at once; the ids of the fake provider's calls count up over its life.
    text = json.dumps([told(result.all_messages()), told(result.new_messages())])
    return _without_ids(text), result.usage, result.output


def _without_ids(text: str) -> str:
    order: dict[str, str] = {}
    for word in text.split('"'):
        if word.startswith("call_"):
            order.setdefault(word, f"id{len(order)}")
    for word in sorted(order, key=len, reverse=True):
        text = text.replace(f'"{word}"', f'"{order[word]}"')
    return text


async def both(world: World, prompt: str, faults: list[Fault | None], *, stream: bool) -> list[Any]:
    chosen = ModelSettings(max_retries=0)
    options: dict[str, Any] = {"run_id": "r", "model_settings": chosen, "deps": "Ada"}
    graph, ours = agent_on(world.theirs), agent_on(world.ours)
    direct = DirectAgent(ours, world.ours)
    events: list[str] = []

    def tell(event: object) -> None:
        match event:
            case FunctionToolCallEvent():
                events.append(f"called {event.part.tool_name}")
            case FunctionToolResultEvent():
                events.append(f"came back {event.part.tool_name} {event.part.outcome}")
            case _:
                if text := text_of(event):
                    # How an answer is cut into pieces is nobody's promise.
                    before = events.pop() if events and events[-1].startswith("said ") else "said "
                    events.append(before + text)

    async def by_graph() -> Any:
        if not stream:
            return await graph.run(prompt, **options)
        async with graph.run_stream_events(prompt, **options) as told_events:
            async for event in told_events:
                if isinstance(event, AgentRunResultEvent):
                    return event.result
                tell(event)
        raise AssertionError("a run ends with its result")

    async def directly() -> Any:
        return await (direct.stream(prompt, tell, **options) if stream else direct.run(prompt, **options))

    outcomes: list[Any] = []
    for run in (by_graph, directly):
        world.fake.requests.clear()
        events.clear()
        world.fake.fault_sequence = list(faults)
        try:
            said: Any = outcome(await run())
        except AgentRunError as error:
            said = (type(error), str(error))
        sent = [_without_ids(json.dumps(call.body)) for call in world.fake.requests]
        outcomes.append((said, sent, _in_order(events)))
    return outcomes


def _in_order(events: list[str]) -> list[str]:
    """Tools that run at once come back in an order that nobody knows."""
    grouped = groupby(events, key=lambda event: event.startswith("came back"))
    return [event for came_back, group in grouped for event in (sorted(group) if came_back else group)]


@settings(max_examples=60, deadline=None)
@given(prompt=PROMPTS, faults=st.sampled_from(FAULTS))
def test_a_run_with_tools_equals_the_graphs(world: World, prompt: str, faults: list[Fault | None]) -> None:
    theirs, ours = world.runner.run(both(world, prompt, faults, stream=False))
    assert theirs == ours


@settings(max_examples=40, deadline=None)
@given(prompt=PROMPTS, faults=st.sampled_from(STREAM_FAULTS))
def test_a_stream_with_tools_equals_the_graphs(world: World, prompt: str, faults: list[Fault | None]) -> None:
    theirs, ours = world.runner.run(both(world, prompt, faults, stream=True))
    assert theirs == ours


def test_the_graph_is_entered_only_where_a_tool_is_called(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    agent = agent_on(world.ours)
    run = agent.run

    async def counted(prompt: Any, **options: Any) -> Any:
        entered.append(prompt)
        return await run(prompt, **options)

    monkeypatch.setattr(agent, "run", counted)
    direct = DirectAgent(agent, world.ours)
    world.fake.fault_sequence = []
    world.fake.requests.clear()

    async def ask() -> None:
        for prompt in ("one", "two", 'call:rain {"city": "a"}'):
            await direct.run(prompt, run_id="r", deps="Ada")

    world.runner.run(ask())
    assert entered == ["probe", 'call:rain {"city": "a"}']
    assert len(world.fake.requests) == 4, "what was answered is not asked for again"


async def _changing(context: RunContext[str], tool: ToolDefinition) -> ToolDefinition:
    return tool


@pytest.mark.parametrize(
    "agent",
    [
        Agent("test", deps_type=str, tools=[Tool(rain, prepare=_changing)]),
        Agent("test", deps_type=str, tools=[Tool(rain, requires_approval=True)]),
        Agent("test", deps_type=str, tools=[Tool(rain, defer_loading=True)]),
        Agent("test", deps_type=str, toolsets=[FunctionToolset([rain])]),
    ],
)
def test_tools_that_may_change_take_the_graph_from_the_start(agent: Agent[str, Any]) -> None:
    assert not tier_of(agent).asks_directly


def test_ordinary_tools_do_not_need_it_for_the_first_request(world: World) -> None:
    tier = tier_of(agent_on(world.ours))
    assert (tier.name, tier.asks_directly) == ("graph", True)
