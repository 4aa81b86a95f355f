"""`/v1/responses` by OpenAI's own client."""

import json
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import FunctionToolParam, ResponseInputItemParam
from pydantic import BaseModel

from tests.wire.conftest import PASSWORD, Wire

TOOL: FunctionToolParam = {
    "type": "function",
    "name": "where_am_i",
    "description": "Where the user is.",
    "parameters": {"type": "object", "properties": {"exact": {"type": "boolean"}}, "required": ["exact"]},
    "strict": False,
}


class City(BaseModel):
    name: str


async def test_a_response_is_answered_kept_and_deleted(client: AsyncOpenAI) -> None:
    response = await client.responses.create(model="default", input="nonce:kept", instructions="Be brief.")
    assert response.status == "completed"
    assert "nonce:kept" in response.output_text
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert await client.responses.retrieve(response.id) == response
    await client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete(response.id)


async def test_what_is_not_to_be_stored_is_not(client: AsyncOpenAI) -> None:
    response = await client.responses.create(model="default", input="nonce:not-kept", store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_a_stream_has_the_documented_events(client: AsyncOpenAI) -> None:
    stream = await client.responses.create(model="default", input="nonce:events", stream=True)
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 3
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == text
    assert "nonce:events" in text
    kept = await client.responses.retrieve(last.response.id)
    assert kept.output_text == text
    plain = await client.responses.with_raw_response.create(model="default", input="nonce:events")
    assert plain.headers["x-cache"] == "HIT"
    assert plain.parse().output_text == text


async def test_the_helper_of_the_client_follows_the_stream(client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="default", input="nonce:helper", text_format=City) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed is not None
    assert "nonce:helper" in final.output_parsed.name


async def test_the_next_one_goes_on_from_the_one_before(client: AsyncOpenAI, wire: Wire) -> None:
    first = await client.responses.create(
        model="default",
        input=[{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "nonce:first"}],
    )
    calls = wire.provider.stats()["calls"]
    second = await client.responses.create(
        model="default", input="nonce:second", previous_response_id=first.id, stream=True
    )
    events = [event async for event in second]
    assert events[-1].type == "response.completed"
    response = events[-1].response
    assert response.previous_response_id == first.id
    talk: Any = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "nonce:first"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "nonce:second"},
    ]
    same = await client.chat.completions.with_raw_response.create(model="default", messages=talk)
    assert same.headers["x-cache"] == "HIT", "the talk told whole is the same question"
    assert wire.provider.stats()["calls"] == calls + 1
    await client.responses.delete(first.id)
    third = await client.responses.create(model="default", input="nonce:third", previous_response_id=response.id)
    assert "nonce:third" in third.output_text


async def test_somebody_elses_response_is_not_there(client: AsyncOpenAI, wire: Wire) -> None:
    mine = await client.responses.create(model="default", input="nonce:mine")
    body = {"username": "other-of-responses", "password": PASSWORD, "role": "user"}
    made = httpx2.post(f"{wire.server.url}/api/v1/users", json=body, headers=wire.server.headers)
    assert made.status_code == 201, made.text
    form = {"username": "other-of-responses", "password": PASSWORD}
    token = httpx2.post(f"{wire.server.url}/api/v1/auth/token", data=form).json()["access_token"]
    other = client.with_options(api_key=token)
    with pytest.raises(openai.NotFoundError):
        await other.responses.retrieve(mine.id)
    with pytest.raises(openai.NotFoundError):
        await other.responses.delete(mine.id)
    with pytest.raises(openai.NotFoundError) as refused:
        await other.responses.create(model="default", input="hi", previous_response_id=mine.id)
    assert refused.value.param == "previous_response_id"
    assert (await client.responses.retrieve(mine.id)).id == mine.id


@pytest.mark.parametrize("stored", [True, False])
async def test_a_tool_of_the_client_is_called_by_the_client(client: AsyncOpenAI, *, stored: bool) -> None:
    asked: list[ResponseInputItemParam] = [{"role": "user", "content": f'call:where_am_i {{"exact": true}} {stored}'}]
    response = await client.responses.create(model="default", input=asked, tools=[TOOL], store=stored)
    (call,) = response.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("where_am_i", {"exact": True})
    result: ResponseInputItemParam = {"type": "function_call_output", "call_id": call.call_id, "output": "in Rome"}
    if stored:
        final = await client.responses.create(
            model="default", input=[result], tools=[TOOL], previous_response_id=response.id
        )
    else:
        again: Any = [*asked, call.model_dump(exclude_none=True), result]
        final = await client.responses.create(model="default", input=again, tools=[TOOL])
    assert "in Rome" in final.output_text


async def test_a_streamed_call_of_a_tool_has_its_events(client: AsyncOpenAI) -> None:
    stream = await client.responses.create(
        model="default", input='call:where_am_i {"exact": false}', tools=[TOOL], stream=True
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_a_late_failure_is_a_failed_response(client: AsyncOpenAI) -> None:
    stream = await client.responses.create(model="default", input="fault:stream-cut, of a response", stream=True)
    events = [event async for event in stream]
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert "openai" in last.response.error.message
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(last.response.id)


async def test_an_early_failure_is_a_status(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as failed:
        await client.responses.create(model="default", input="fault:500, of a response", stream=True)
    assert failed.value.status_code == 502


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.type"),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/a.png"}]}
                ]
            },
            "input.0.content.0.image_url",
        ),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1", "input": [{"role": "user", "content": c} for c in "ab"]}, "input"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(wire: Wire, fields: dict[str, Any], param: str) -> None:
    reply = wire.post("/v1/responses", {"model": "default", "input": "hi", **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
