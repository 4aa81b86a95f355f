"""`PromptService.stream`: what is said while it is said, shared, cached, and given up."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.core.run import Answer, Caller, ClientTool, OutputSchema, Question, RunEvent, Started, TextDelta
from app.errors import NotFound, ProviderFailed
from benchmarks.fake_provider import FakeProvider
from tests.application import Application, open_application

ANNA = Caller("1", "anna", "user")


@pytest.fixture
def fake(fake: FakeProvider) -> FakeProvider:
    fake.chunks = 20
    return fake


@pytest.fixture
async def application(fake: FakeProvider, tmp_path: Path) -> AsyncIterator[Application]:
    async with open_application(tmp_path / "data", default_model="openai-chat:gpt-4o-mini") as opened:
        yield opened


async def told(application: Application, message: str, **options: Any) -> list[RunEvent]:
    room = await application.runtime.agent_room
    async with room.prompts.stream(ANNA, Question(message, **options)) as events:
        return [event async for event in events]


def text_of(events: list[RunEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def answer_of(events: list[RunEvent]) -> Answer:
    last = events[-1]
    assert isinstance(last, Answer)
    return last


async def test_a_stream_says_what_the_answer_is_and_is_replayed_from_the_same_entry(
    application: Application, fake: FakeProvider
) -> None:
    fake.chunk_gap_s = 0.02  # what comes at once is told as one
    first = await told(application, "nonce:S")
    second = await told(application, "nonce:S")
    assert isinstance(first[0], Started)
    assert isinstance(second[0], Started)
    assert (first[0].cache, second[0].cache) == ("MISS", "HIT")
    assert sum(isinstance(event, TextDelta) for event in first) > 1
    assert text_of(first) == text_of(second) == answer_of(first).output == answer_of(second).output
    assert answer_of(first).usage == answer_of(second).usage
    assert fake.calls == 1


async def test_plain_and_streamed_share_one_entry(application: Application, fake: FakeProvider) -> None:
    room = await application.runtime.agent_room
    plain = await room.prompts.answer(ANNA, Question("nonce:P"))
    assert text_of(await told(application, "nonce:P")) == plain.output
    assert fake.calls == 1


async def test_a_late_joiner_gets_what_was_said_and_follows(application: Application, fake: FakeProvider) -> None:
    room = await application.runtime.agent_room
    fake.chunk_gap_s = 0.02
    async with room.prompts.stream(ANNA, Question("nonce:L")) as first:
        heard: list[RunEvent] = [await anext(first) for _ in range(4)]
        async with room.prompts.stream(ANNA, Question("nonce:L")) as second:
            late = [event async for event in second]
        heard += [event async for event in first]
    assert isinstance(late[0], Started)
    assert late[0].cache == "COALESCED"
    assert text_of(late) == text_of(heard) == answer_of(heard).output
    assert len(late) > 5
    assert fake.calls == 1


async def test_the_last_listener_to_leave_ends_the_providers_stream(
    application: Application, fake: FakeProvider
) -> None:
    room = await application.runtime.agent_room
    fake.chunk_gap_s = 5
    async with room.prompts.stream(ANNA, Question("nonce:G")) as events:
        assert isinstance(await anext(events), Started)
        assert isinstance(await anext(events), TextDelta)
        assert fake.open_streams == 1
    async with asyncio.timeout(5):
        while fake.open_streams:
            await asyncio.sleep(0.01)
    assert room.pool.in_use == 0
    assert application.runtime.cache.waiting == 0


async def test_a_stream_that_was_cut_is_an_error_and_is_not_kept(application: Application, fake: FakeProvider) -> None:
    for fault in ("stream-cut", "stream-no-finish"):
        with pytest.raises(ProviderFailed):
            await told(application, f"fault:{fault}")
        assert application.runtime.cache.numbers()["stores"] == 0


async def test_an_unknown_agent_is_refused_before_anything_is_said(application: Application) -> None:
    with pytest.raises(NotFound):
        await told(application, "x", agent="nobody")


async def test_a_shape_that_the_caller_wants_reaches_the_provider(application: Application, fake: FakeProvider) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    room = await application.runtime.agent_room
    question = Question("a city", output_schema=OutputSchema("place", schema))
    answer = await room.prompts.answer(ANNA, question)
    assert fake.requests[-1].body["response_format"]["json_schema"]["name"] == "place"
    assert isinstance(answer.output, dict)


async def test_a_call_to_the_callers_tool_ends_the_run_and_its_result_continues_it(
    application: Application, fake: FakeProvider
) -> None:
    from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelRequest, ToolReturnPart

    room = await application.runtime.agent_room
    tool = ClientTool("weather", "Tells the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
    question = Question('call:weather {"city": "Bonn"}', client_tools=(tool,))
    asked = await room.prompts.answer(ANNA, question)
    assert asked.finish_reason == "tool_calls"
    (call,) = asked.tool_calls
    assert (call.tool, json.loads(call.arguments)) == ("weather", {"city": "Bonn"})
    assert asked.messages is not None
    said = ModelMessagesTypeAdapter.validate_json(asked.messages)
    result = ModelRequest([ToolReturnPart("weather", "sunny", tool_call_id=call.call_id)])
    answer = await room.prompts.answer(ANNA, Question(None, history=(*said, result), client_tools=(tool,)))
    assert answer.finish_reason == "stop"
    assert fake.requests[-1].body["messages"][-1]["content"] == "sunny"
